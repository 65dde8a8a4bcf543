//! What it costs, on a real server: `CVLAN_FIGURES=1 cargo test -p cvlan-projections figures -- --nocapture` prints a line each.

use super::testing::{Database, LONG};
use crate::testing::World;
use crate::writer::{History, Past, Writer};
use cvlan_core::cvlan::CvlanCommand;
use cvlan_core::id::{Checkpoint, CvlanId, NodeId, Seq};
use cvlan_core::machine::Machine;
use cvlan_core::node::{Device, NodeCommand};
use cvlan_core::{Rules, State, Wish};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// One CVLAN with so many nodes.
fn world(nodes: usize) -> World {
    let mut world = World::new(1, 0);
    let tenant = *world.state.tenants.keys().next().unwrap();
    let cvlan = CvlanId(Uuid::from_u128(1));
    let (ipv4, ipv6, name) = ("10.0.0.0/9".to_owned(), "auto".to_owned(), "office".to_owned());
    assert!(world.run(Wish::Cvlan(CvlanCommand::Create { tenant, id: cvlan, name, ipv4, ipv6, global_id: [1; 5] })));
    for from in (0..nodes).step_by(500) {
        let device = |n: usize| {
            let mut wg_key = [7; 32];
            wg_key[..8].copy_from_slice(&n.to_le_bytes());
            let id = NodeId(Uuid::from_u128((n as u128 + 2).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)));
            Device { cvlan, id, name: format!("node-{n}"), wg_key, tags: vec!["lab".to_owned()], endpoints: Vec::new() }
        };
        let devices = (from..nodes.min(from + 500)).map(device).collect();
        assert!(world.run(Wish::Node(NodeCommand::Create { tenant, devices })));
    }
    world
}

/// Figures are wanted; else it is only seen that what measures works.
fn whole() -> bool {
    std::env::var_os("CVLAN_FIGURES").is_some()
}

fn log(world: &World) -> History {
    let events = world.events.clone();
    Box::new(move |from, limit| match from.0 {
        0 => Err(Past::Gone(Seq(1))),
        _ => Ok(events.iter().skip(from.0 as usize - 1).take(limit).cloned().collect()),
    })
}

#[test]
fn lag() {
    const RATE: usize = 5_000;
    let Some(database) = Database::new() else { return };
    let world = world(RATE * if whole() { 10 } else { 1 });
    let (writer, status) = Writer::postgres(database.url(), log(&world), Box::new(|| true)).unwrap();
    let (mut state, epoch) = (State::default(), world.epoch);
    writer.push(state.clone(), Checkpoint { epoch, seq: Seq(0) }, Vec::new());
    assert!(writer.wait(Checkpoint { epoch, seq: Seq(0) }, LONG));
    let started = Instant::now();
    let due = |seq: usize| started + Duration::from_secs_f64(seq as f64 / RATE as f64);
    let lags = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut lags, mut seen) = (Vec::new(), 0);
            while seen < world.events.len() {
                std::thread::sleep(Duration::from_millis(2));
                let (now, there) = (Instant::now(), status.checkpoint().seq.0 as usize);
                // Each event since it was due, not since it was pushed: a push that waits would hide in it.
                lags.extend((seen + 1..=there).map(|seq| now.saturating_duration_since(due(seq))));
                seen = there;
            }
            lags
        });
        for (i, events) in world.events.chunks(10).enumerate() {
            std::thread::sleep(due(i * 10).saturating_duration_since(Instant::now()));
            events.iter().for_each(|event| Rules::apply(&mut state, event));
            let seq = Seq((i * 10 + events.len()) as u64);
            writer.push(state.clone(), Checkpoint { epoch, seq }, events.to_vec());
        }
        reader.join().unwrap()
    });
    let mut lags: Vec<f64> = lags.into_iter().map(|lag| lag.as_secs_f64() * 1e3).collect();
    lags.sort_by(f64::total_cmp);
    let at = |part: f64| lags[((lags.len() - 1) as f64 * part) as usize];
    println!(
        "CVLAN_BENCH name=postgres_lag value={:.1} unit=ms what=max rate={RATE} events={} p50={:.1} p99={:.1}",
        at(1.0),
        lags.len(),
        at(0.5),
        at(0.99)
    );
    assert!(at(1.0) > 0.0);
}

#[test]
fn rebuild() {
    let Some(database) = Database::new() else { return };
    let world = world(if whole() { 100_000 } else { 3_000 });
    let rows = world.state.tenants.values().map(|t| 1 + t.nodes.len() + t.cvlans.len()).sum::<usize>();
    for what in ["empty", "unchanged"] {
        let (writer, status) = Writer::postgres(database.url(), log(&world), Box::new(|| true)).unwrap();
        // The second time the view is of a log that nobody has, but for its epoch.
        if what == "unchanged" {
            database.asked().execute("UPDATE cvlan.meta SET epoch = decode(repeat('01', 16), 'hex')");
            // Until the server has seen that the first one's connection is gone.
            std::thread::sleep(Duration::from_secs(1));
        }
        let started = Instant::now();
        writer.push(world.state.clone(), world.checkpoint(), Vec::new());
        assert!(writer.wait(world.checkpoint(), LONG * 5), "{}", status.error());
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "CVLAN_BENCH name=postgres_rebuild value={:.0} unit=rows/s what={what} rows={rows} seconds={seconds:.2}",
            rows as f64 / seconds
        );
    }
}
