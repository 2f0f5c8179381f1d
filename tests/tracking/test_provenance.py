"""What a run was made of can be searched for in the store."""

from fvl_lightning.tracking.provenance import provenance


def test_what_was_taken_of_the_variants_is_tagged() -> None:
    tags = provenance({"chosen": {"recipe": "released", "scale": "tiny"}, "seed": 1}, "abc123")
    assert (tags["fvl.chosen.recipe"], tags["fvl.chosen.scale"]) == ("released", "tiny")
    assert not [tag for tag in provenance({"chosen": {}}, "abc123") if tag.startswith("fvl.chosen")]
