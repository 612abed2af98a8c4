"""Programs of ours in a process of their own."""

import subprocess
from pathlib import Path

from haversack.edge.child_program import child_command


def test_files_of_the_current_folder_are_no_modules_of_a_child(tmp_path: Path) -> None:
    """Neither one with the name of a module that it imports, nor a folder with its own name."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('not numpy')")
    (tmp_path / "haversack" / "devices").mkdir(parents=True)
    command = child_command("haversack.edge")
    found = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("haversack ")
