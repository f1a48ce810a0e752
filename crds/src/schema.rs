//! Pieces of schema that the derive cannot express.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Free-form JSON kept as it is, as one atomic value. It has no type, also where it should be an object: rules compare values without a
/// type as they are, and an object without listed fields by the number of its fields alone.
pub fn any_json(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

/// A positive Kubernetes quantity, as an integer or a string such as `250m` or `64Mi`.
pub fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 32,
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? self > 0 : (isQuantity(self) && quantity(self).isGreaterThan(quantity('0')))",
            "message": "must be a positive quantity such as 1, 250m or 64Mi",
        }],
    })
}

/// A list with one entry per value of `key`, merged by that key under server-side apply.
macro_rules! list_map {
    ($function:ident, $item:ty, $key:literal, $max:literal) => {
        pub(crate) fn $function(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "type": "array",
                "items": generator.subschema_for::<$item>(),
                "maxItems": $max,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": [$key],
            })
        }
    };
}

/// A list that is replaced as a whole, with at most `max` entries.
macro_rules! list_atomic {
    ($function:ident, $item:ty, $max:literal) => {
        pub(crate) fn $function(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "type": "array",
                "items": generator.subschema_for::<$item>(),
                "maxItems": $max,
                "x-kubernetes-list-type": "atomic",
            })
        }
    };
}

/// A list of strings, each at most `length` characters.
macro_rules! list_of_strings {
    ($function:ident, $max:literal, $length:literal $(, $($rest:tt)*)?) => {
        pub(crate) fn $function(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "type": "array",
                "items": { "type": "string", "maxLength": $length $(, $($rest)*)? },
                "maxItems": $max,
                "x-kubernetes-list-type": "atomic",
            })
        }
    };
}

pub(crate) use {list_atomic, list_map, list_of_strings};
