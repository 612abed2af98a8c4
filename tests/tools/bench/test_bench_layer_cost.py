"""What a layer costs beside its weights is measured on models of next to none."""

from haversack.tools.bench import layer_cost as bench_layer_cost


def test_two_models_give_the_cost_of_a_layer_and_of_the_rest() -> None:
    layer_s, rest_s = bench_layer_cost.layer_cost(1, tokens=2, rounds=2)
    assert abs(layer_s) + abs(rest_s) < 600  # seconds; how many is the computer's matter
