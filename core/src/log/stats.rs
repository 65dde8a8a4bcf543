//! What is said of a log in numbers: the same words for one that runs and for a folder.

use crate::rules::timestamp_ms as ms_of;
use cvlan_proto::Timestamp;
use cvlan_proto::v1::LogStats;

/// Names and values, one a line. `now_ms`: of whoever reads it, for ages.
pub fn facts(stats: &LogStats, now_ms: u64) -> Vec<(&'static str, String)> {
    let at = |time: &Option<Timestamp>| time.as_ref().map(ms_of);
    let old = |time: &Option<Timestamp>| at(time).map_or_else(String::new, |ms| format!(", {} old", age(now_ms, ms)));
    let first = match at(&stats.first_time) {
        None => "none can be read".to_owned(),
        Some(ms) => format!("{}, {} old", stats.first_seq, age(now_ms, ms)),
    };
    let mut facts = vec![
        ("epoch", stats.epoch.clone()),
        ("events", stats.events.to_string()),
        ("entries", stats.entries.to_string()),
        ("first event", first),
        ("log", format!("{} bytes in {} segments, kept by {}", stats.log_bytes, stats.segments, stats.store)),
        ("tree", format!("{} leaves, root {}", stats.tree_size, stats.tree_root)),
    ];
    for snapshot in &stats.snapshots {
        facts.push(("snapshot", format!("event {}, {} bytes{}", snapshot.seq, snapshot.bytes, old(&snapshot.time))));
    }
    if let Some(backup) = &stats.last_backup {
        let to = if backup.seq > 0 { format!("event {}", backup.seq) } else { "made before the start".to_owned() };
        let file = if backup.file.is_empty() { "sent to a caller" } else { &backup.file };
        facts.push(("last backup", format!("{to}, {file}{}", old(&backup.time))));
    }
    for sink in &stats.sinks {
        let behind = match stats.events.saturating_sub(sink.seq) {
            0 => String::new(),
            behind => format!(", {behind} behind"),
        };
        let skipped =
            if sink.skipped > 0 { format!(", {} gone before it had them", sink.skipped) } else { String::new() };
        let problem = if sink.problem.is_empty() { String::new() } else { format!(": {}", sink.problem) };
        let number = if sink.number > 0 { format!("{} ", sink.number) } else { String::new() };
        facts.push(("sink", format!("{number}{} has {}{behind}{skipped}{problem}", sink.sink, sink.seq)));
    }
    facts
}

/// In the two largest units that there are.
fn age(now_ms: u64, at_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(at_ms) / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvlan_proto::v1::{LogBackup, LogSink, LogSnapshot};

    #[test]
    fn every_number_has_its_line() {
        let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let stats = LogStats {
            events: 12,
            first_seq: 3,
            first_time: time(0),
            snapshots: vec![LogSnapshot { seq: 10, time: time(100_000), bytes: 5 }],
            last_backup: Some(LogBackup { seq: 9, time: time(199_970), file: String::new() }),
            sinks: vec![LogSink {
                number: 1,
                sink: "file:/a".into(),
                seq: 7,
                skipped: 2,
                problem: "it is full".into(),
            }],
            ..LogStats::default()
        };
        let said: Vec<_> =
            facts(&stats, 200_000_000).into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
        for line in [
            "events: 12",
            "first event: 3, 2 d 7 h old",
            "snapshot: event 10, 5 bytes, 1 d 3 h old",
            "last backup: event 9, sent to a caller, 30 s old",
            "sink: 1 file:/a has 7, 5 behind, 2 gone before it had them: it is full",
        ] {
            assert!(said.iter().any(|s| s == line), "{line}: {said:?}");
        }
        let none = facts(&LogStats::default(), 0);
        assert!(none.contains(&("first event", "none can be read".to_owned())));
    }
}
