import json


def test_the_table_has_a_column_per_configuration(run) -> None:
    result = run("cost", "config_16B", "config_671B")
    assert result.code == 0
    lines = {line[:28].strip(): line[28:].split() for line in result.out.splitlines()}
    assert result.out.splitlines()[0].split() == ["config_16B", "config_671B"]
    assert lines["parameters"] == ["15,706,484,224", "671,026,404,352"]
    assert lines["latent cache per token"] == ["31,104", "B", "70,272", "B"]
    assert "37.55 B" in result.out
    assert len({len(line) for line in result.out.splitlines()}) == 1, "columns are aligned"


def test_json_carries_the_exact_figures(run) -> None:
    costs = json.loads(run("cost", "config_671B", "--json", "--context", "1000").out)
    assert costs["config_671B"]["parameters_per_mtp_module"] == 11_610_067_968
    assert costs["config_671B"]["cache_bytes_at_context"] == 70_272_000


def test_an_unknown_key_names_its_neighbour(run, tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"n_layer": 3}')
    result = run("cost", path)
    assert result.code == 1
    assert "'n_layer'" in result.err
    assert "'n_layers'" in result.err
