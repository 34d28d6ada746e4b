"""Where parameters, moments and averages land, by policy and by rule."""


def test_the_policy_splits_the_largest_dimension_that_divides_of_large_arrays_only():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    shapes = {
        "stacked": (12, 64, 256),
        "square": (12, 256, 256),
        "odd": (127, 255),
        "second": (8, 4097),
        "small": (8, 8),
        "scalar": (),
    }
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: s.spec for name, s in sharding.parameter_shardings(params, mesh).items()}
    assert specs == {
        "stacked": PartitionSpec(None, None, "fsdp"),
        "square": PartitionSpec(None, None, "fsdp"),  # a tie goes to the last
        "odd": PartitionSpec(),
        "second": PartitionSpec("fsdp"),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }
    alone = sharding.parameter_shardings(params, make_mesh(MeshConfig(data=8)))
    assert all(s.spec == PartitionSpec() for s in alone.values())
