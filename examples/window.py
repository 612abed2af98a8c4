"""A desktop window that embeds a model: text streams in, Stop ends it, and a crash of native code
in the model's process leaves the window open.

    python examples/window.py [MODEL]
"""

import queue
import sys
import threading
import tkinter as tk
from tkinter import scrolledtext

from haversack import edge

POLL_MS = 30


class Window:
    """One question at a time. A thread reads the reply, because tkinter has one thread."""

    def __init__(self, root: tk.Tk, model: edge.IsolatedModel) -> None:
        self._root, self._model = root, model
        self._pieces: queue.Queue[str | None] = queue.Queue()
        self._generation: edge.IsolatedGeneration | None = None
        self._text = scrolledtext.ScrolledText(root, wrap=tk.WORD, width=80, height=24)
        self._entry = tk.Entry(root)
        self._stop = tk.Button(root, text="Stop", command=self.stop, state=tk.DISABLED)
        self._text.pack(fill=tk.BOTH, expand=True)
        self._entry.pack(fill=tk.X, side=tk.LEFT, expand=True)
        self._stop.pack(side=tk.RIGHT)
        self._entry.bind("<Return>", lambda _: self.ask())
        self._entry.focus()

    def ask(self) -> None:
        """Begin the reply to what was typed."""
        question = self._entry.get().strip()
        if not question or self._generation is not None:
            return
        self._entry.delete(0, tk.END)
        self._text.insert(tk.END, f"\n> {question}\n")
        self._generation = self._model.chat([{"role": "user", "content": question}], 400)
        self._stop.configure(state=tk.NORMAL)
        threading.Thread(target=self._read, args=(self._generation,), daemon=True).start()
        self._show()

    def _read(self, generation: "edge.IsolatedGeneration") -> None:
        try:
            for piece in generation:
                self._pieces.put(piece)
        except edge.HaversackError as error:
            self._pieces.put(f"\n[{error}]")
        self._pieces.put(None)

    def _show(self) -> None:
        while not self._pieces.empty():
            piece = self._pieces.get()
            if piece is None:
                self._generation = None
                self._stop.configure(state=tk.DISABLED)
                return
            self._text.insert(tk.END, piece)
            self._text.see(tk.END)
        self._root.after(POLL_MS, self._show)

    def stop(self) -> None:
        """End the reply under way."""
        if self._generation is not None:
            self._generation.cancel()


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else edge.builtin_model()
    root = tk.Tk()
    root.title("haversack")
    with edge.load_isolated(path, ram="1GiB", ctx=2048) as model:
        Window(root, model)
        root.mainloop()


if __name__ == "__main__":
    main()
