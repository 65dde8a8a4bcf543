//! Members: the controllers of the cluster.

use crate::print::{Column, Noun, text, time};
use serde_json::Value;

/// A member, as people see it.
pub const NOUN: Noun = Noun {
    name: "member",
    path: "cluster/members",
    key: "name",
    columns: &[
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "id", wide: false, value: |i, _| text(i, "id") },
        Column { name: "role", wide: false, value: |i, _| role(i) },
        Column { name: "address", wide: false, value: |i, _| text(i, "address") },
        Column { name: "heard", wide: false, value: |i, _| ms(i, "heardMs") },
        Column { name: "behind", wide: false, value: |i, _| text(i, "behind") },
        Column { name: "skew", wide: false, value: |i, _| ms(i, "skewMs") },
        Column { name: "version", wide: false, value: |i, _| text(i, "version") },
        Column { name: "waits", wide: true, value: |i, _| text(i, "waits") },
        Column { name: "api", wide: true, value: |i, _| text(i, "apiUrls") },
        Column { name: "machines", wide: true, value: |i, _| text(i, "nodeUrls") },
        Column { name: "joined", wide: true, value: |i, _| time(i, "joinedAt") },
        Column { name: "expires", wide: true, value: |i, _| time(i, "expiresAt") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
    ],
};

/// What Raft has it do; before that, how far it has come.
fn role(item: &Value) -> String {
    match text(item, "role").as_str() {
        "" => text(item, "state"),
        "follower" => "voter".to_owned(),
        role => role.to_owned(),
    }
}

/// Milliseconds; empty where nothing is known.
fn ms(item: &Value, name: &str) -> String {
    match text(item, name).as_str() {
        "" => String::new(),
        ms => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_role_is_what_people_call_it() {
        for (item, wanted) in [
            (json!({"role": "leader", "state": "joined"}), "leader"),
            (json!({"role": "follower", "state": "joined"}), "voter"),
            (json!({"role": "learner", "state": "joined"}), "learner"),
            (json!({"role": "", "state": "admitted"}), "admitted"),
        ] {
            assert_eq!(role(&item), wanted);
        }
    }
}
