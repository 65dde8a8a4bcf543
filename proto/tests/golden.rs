//! The bytes and the JSON of every event kind, as they were when it was first written. A line here changes only
//! together with a line in CHANGELOG.md; a new kind gets a new line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cvlan_proto::v1::Event;
use cvlan_proto::{DESCRIPTORS, Message};
use prost_types::FileDescriptorSet;
use serde_json::Value;
use std::collections::BTreeSet;

fn golden() -> Vec<Value> {
    include_str!("../golden/events.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn bytes_and_json_are_what_they_were() {
    for line in golden() {
        let bytes = hex::decode(line["bytes"].as_str().unwrap()).unwrap();
        let event = Event::decode(bytes.as_slice()).unwrap();
        assert_eq!(event.encode_to_vec(), bytes, "{}", line["kind"]);
        assert_eq!(serde_json::to_value(&event).unwrap(), line["json"], "{}", line["kind"]);
        assert_eq!(serde_json::from_value::<Event>(line["json"].clone()).unwrap(), event, "{}", line["kind"]);
    }
}

/// Every `oneof kind` of every `…Event` message has its line.
#[test]
fn no_kind_is_missing() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut kinds = BTreeSet::new();
    for message in set.file.iter().flat_map(|f| &f.message_type) {
        let name = message.name();
        let Some(noun) = name.strip_suffix("Event").filter(|n| !n.is_empty()) else { continue };
        for field in message.field.iter().filter(|f| f.oneof_index.is_some()) {
            let verb: String = field.name().split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
            kinds.insert(if noun == "System" { verb } else { format!("{noun}{verb}") }.to_lowercase());
        }
    }
    let have: BTreeSet<String> = golden().iter().map(|l| l["kind"].as_str().unwrap().to_lowercase()).collect();
    assert_eq!(have, kinds);
}

#[test]
fn unknown_json_fields_are_refused() {
    let mut json = golden().remove(0)["json"].clone();
    json["surprise"] = Value::Bool(true);
    assert!(serde_json::from_value::<Event>(json).is_err());
}
