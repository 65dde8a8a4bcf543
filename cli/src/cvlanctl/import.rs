//! `cvlanctl node import`: plain WireGuard devices from a file, in requests of many.

use crate::Global;
use crate::client::Client;
use crate::cvlan;
use crate::failure::Failure;
use crate::node::NOUN;
use crate::print::{Format, Names, talk, text};
use crate::target::find;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;

/// Devices in one request: the controller takes 1000.
const LOT: usize = 500;
/// Bytes of one request's devices: the controller takes a body of 1 MiB.
const LOT_BYTES: usize = 512 << 10;
/// The largest file.
const FILE_MAX: u64 = 256 << 20;

/// Adds what the file has; `place`: the CVLAN of devices that name none.
pub async fn import(
    mut client: Client,
    global: &Global,
    home: &str,
    file: &str,
    place: Option<&str>,
) -> Result<(), Failure> {
    let mut devices = read(file)?;
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (device, n) in devices.iter_mut().zip(1..) {
        let named = match device.get("cvlan") {
            Some(Value::String(named)) => Some(named.as_str()),
            Some(Value::Null) | None => place,
            Some(other) => {
                return Err(Failure::usage(format!("device {n}: its CVLAN is {other}, not a name or an id")));
            }
        };
        let named = named.ok_or_else(|| Failure::usage(format!("device {n} names no CVLAN; say --cvlan CVLAN")))?;
        let id = match places.get(named) {
            Some(id) => id.clone(),
            None => {
                let id = text(&find(&mut client, &cvlan::NOUN, home, named).await?, "id");
                places.insert(named.to_owned(), id.clone());
                id
            }
        };
        if let Value::Object(fields) = device {
            fields.insert("cvlan".into(), id.into());
        }
    }
    let all = devices.len();
    // Draws on a terminal's stderr, and nothing elsewhere.
    let bar = ProgressBar::new(all as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} nodes, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let (mut made, mut failed) = (Vec::new(), None);
    for lot in lots(devices) {
        let (first, lot_len) = (made.len() + 1, lot.len());
        match client.post(&format!("{home}/nodes:bulk"), Some(json!({"items": lot}))).await {
            Ok(mut answer) => {
                if let Some(Value::Array(items)) = answer.get_mut("items").map(Value::take) {
                    made.extend(items);
                }
                bar.set_position(made.len() as u64);
            }
            Err(failure) => {
                let last = made.len() + lot_len;
                let hint = match failure.is_uncertain() {
                    true => {
                        format!("devices {first} to {last} of {all} may have been added, those before were; look first")
                    }
                    false => format!("device 1 of it is number {first} of the file; {} of {all} were added", first - 1),
                };
                failed = Some(failure.hint(hint));
                break;
            }
        }
    }
    bar.finish_and_clear();
    let count = made.len();
    if !matches!(global.output, Format::Table) {
        // What was added is said also where nothing more can be asked.
        let listed = client.list(&format!("{home}/cvlans"), crate::client::LIST_MAX).await;
        let names = listed.map(|cvlans| Names::of(&cvlans)).unwrap_or_default();
        NOUN.list(global, made, &names)?;
    }
    match failed {
        Some(failure) => Err(failure),
        None => {
            talk(&format!("{count} nodes are added"));
            Ok(())
        }
    }
}

/// JSON: arrays of objects, or objects one after the other.
fn read(file: &str) -> Result<Vec<Value>, Failure> {
    let unreadable = |error: std::io::Error| Failure::new("file", format!("{file}: {error}"));
    let mut text = String::new();
    let from: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(std::fs::File::open(path).map_err(unreadable)?),
    };
    from.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_MAX {
        return Err(Failure::usage(format!("{file} has over {} MiB; split it", FILE_MAX >> 20)));
    }
    let mut devices = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        match value.map_err(|error| Failure::usage(format!("{file}: {error}")))? {
            Value::Array(items) => devices.extend(items),
            one => devices.push(one),
        }
    }
    match devices.iter().position(|device| !device.is_object()) {
        Some(at) => Err(Failure::usage(format!("{file}: device {} is no JSON object", at + 1))),
        None if devices.is_empty() => Err(Failure::usage(format!("{file} has no devices"))),
        None => Ok(devices),
    }
}

/// What fits into one request each.
fn lots(devices: Vec<Value>) -> Vec<Vec<Value>> {
    let (mut lots, mut bytes): (Vec<Vec<Value>>, usize) = (Vec::new(), 0);
    for device in devices {
        let length = device.to_string().len() + 1;
        match lots.last_mut().filter(|lot| lot.len() < LOT && bytes + length <= LOT_BYTES) {
            Some(lot) => lot.push(device),
            None => {
                bytes = 0;
                lots.push(vec![device]);
            }
        }
        bytes += length;
    }
    lots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lot_is_bounded_by_number_and_bytes_and_keeps_the_order() {
        let small: Vec<Value> = (0..1201).map(|n| json!({"name": n})).collect();
        let all = lots(small.clone());
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [500, 500, 201]);
        assert_eq!(all.concat(), small);
        let large: Vec<Value> = (0..5).map(|n| json!({"name": n, "tags": "x".repeat(200 << 10)})).collect();
        assert_eq!(lots(large).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
