//! Members: the controllers of the cluster.

use crate::print::{Column, Noun, text, time};

/// A member, as people see it.
pub const NOUN: Noun = Noun {
    name: "member",
    path: "cluster/members",
    key: "name",
    columns: &[
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "id", wide: false, value: |i, _| text(i, "id") },
        Column { name: "state", wide: false, value: |i, _| text(i, "state") },
        Column { name: "address", wide: false, value: |i, _| text(i, "address") },
        Column { name: "version", wide: false, value: |i, _| text(i, "version") },
        Column { name: "joined", wide: true, value: |i, _| time(i, "joinedAt") },
        Column { name: "expires", wide: true, value: |i, _| time(i, "expiresAt") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
    ],
};
