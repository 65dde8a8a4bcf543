//! Properties over random histories: what holds for every log that could ever be written.

use crate::grammar::{Grammar, KINDS, Rng, check_invariants, check_keys};
use crate::id::{Checkpoint, Epoch, MemberId, NodeId, Seq};
use crate::machine::{Context, Machine};
use crate::map::place;
use crate::node::Status;
use crate::sync::{HEARTBEAT_MS, Output, Session, View};
use crate::{Rules, State};
use cvlan_proto::v1::{self, Event, SyncFrame, event::Body, sync_frame::Frame};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

const EPOCH: Epoch = Epoch([7; 16]);

/// A history: the events, and the state after every command.
struct Run {
    events: Vec<Event>,
    state: State,
    seq: u64,
    now_ms: u64,
    grammar: Grammar,
    rng: Rng,
    keys: Rng,
    codes: BTreeMap<&'static str, u32>,
    kinds: BTreeMap<&'static str, u32>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut run = Self {
            events: Vec::new(),
            state: State::default(),
            seq: 0,
            now_ms: 1_700_000_000_000,
            grammar: Grammar::new(seed),
            rng: Rng(!seed),
            keys: Rng(!seed ^ 1),
            codes: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        let first = run.grammar.bootstrap();
        run.carry_out(&first).unwrap();
        run
    }

    fn step(&mut self) {
        self.now_ms += self.rng.below(90_000);
        // Now and then long enough for keys to end.
        if self.keys.one_in(100) {
            self.now_ms += 20 * 3_600_000;
        }
        let (kind, command) = self.grammar.next(&self.state);
        *self.kinds.entry(kind).or_default() += 1;
        if let Err(code) = self.carry_out(&command) {
            *self.codes.entry(code).or_default() += 1;
        }
    }

    fn carry_out(&mut self, command: &crate::Command) -> Result<(), &'static str> {
        let ctx = Context { epoch: EPOCH, next_seq: Seq(self.seq + 1), time_ms: self.now_ms, level: 1, known_level: 1 };
        let events = Rules::decide(&self.state, &ctx, command).map_err(|r| r.code)?;
        assert_eq!(Rules::decide(&self.state, &ctx, command).ok().as_ref(), Some(&events), "decide is deterministic");
        for event in events {
            let mut bytes = Vec::new();
            Rules::encode(&event, &mut bytes);
            assert_eq!(Rules::decode(&bytes).unwrap(), event);
            Rules::apply(&mut self.state, &event);
            self.seq += 1;
            assert_eq!(event.seq, self.seq);
            self.events.push(event);
        }
        Ok(())
    }
}

fn saved(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rules::save(state, &mut bytes);
    bytes
}

#[test]
fn replay_is_live_a_saved_state_is_the_state_and_invariants_hold() {
    let (mut kinds, mut bodies, mut codes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for seed in 0..60 {
        let mut run = Run::new(seed);
        for step in 0..400 {
            run.step();
            if step % 50 == 0 {
                check_invariants(&run.state).unwrap();
            }
        }
        check_invariants(&run.state).unwrap();
        let live = saved(&run.state);
        let mut replayed = State::default();
        run.events.iter().for_each(|e| Rules::apply(&mut replayed, e));
        assert_eq!(saved(&replayed), live, "seed {seed}: replay differs");

        // From a snapshot half way, then the tail.
        let half = run.events.len() / 2;
        let mut early = State::default();
        run.events[..half].iter().for_each(|e| Rules::apply(&mut early, e));
        let mut resumed = Rules::load(&saved(&early)).unwrap();
        assert_eq!(saved(&resumed), saved(&early), "seed {seed}: a loaded state saves differently");
        run.events[half..].iter().for_each(|e| Rules::apply(&mut resumed, e));
        assert_eq!(saved(&resumed), live, "seed {seed}: snapshot and tail differ");

        check_keys(&run.events).unwrap();
        kinds.extend(run.kinds.keys().copied());
        codes.extend(run.codes.keys().copied());
        for event in &run.events {
            bodies.insert(kind_of(event));
            // The log's own, and presence, are in no view.
            let nowhere = Rules::event_fact(event).is_some() || matches!(event.body, Some(Body::Presence(_)));
            assert_eq!(Rules::touched(event).is_empty(), nowhere, "{event:?}");
        }
    }
    assert_eq!(kinds, BTreeSet::from(KINDS), "a generator was never drawn");
    for code in ["idempotency_repeated", "idempotency_key_reused"] {
        assert!(codes.contains(code), "nothing was refused with {code}");
    }
    // Every event kind that a command can make was made (checkpoints are made by raft/).
    for kind in ALL_EVENTS {
        assert!(bodies.contains(kind), "no history made {kind}; there were {bodies:?}");
    }
}

const ALL_EVENTS: [&str; 21] = [
    "advertisementChanged",
    "bootstrapped",
    "cvlanCreated",
    "cvlanDeleted",
    "cvlanUpdated",
    "memberAdmitted",
    "memberJoined",
    "memberRemoved",
    "nodeCreated",
    "nodeDeleted",
    "nodeEndpointsChanged",
    "nodeUpdated",
    "presenceChanged",
    "tenantCreated",
    "tenantDeleted",
    "tenantUpdated",
    "tokenCreated",
    "tokenDeleted",
    "userCreated",
    "userDeleted",
    "userPasswordChanged",
];

/// As the JSON names it: noun and verb.
fn kind_of(event: &Event) -> String {
    let json = serde_json::to_value(event).unwrap();
    let nouns = ["system", "tenant", "cvlan", "node", "token", "user", "member", "presence"];
    let noun = nouns.into_iter().find(|n| json.get(n).is_some()).unwrap();
    let verb = json[noun].as_object().unwrap().keys().next().unwrap().clone();
    if noun == "system" { verb } else { format!("{noun}{}{}", verb[..1].to_uppercase(), &verb[1..]) }
}

/// Events that were written before there were members lead to the state, byte for byte, that they led to then: logs
/// have its digest in them.
#[test]
fn an_old_log_keeps_its_digests_and_its_urls_are_the_founders() {
    let golden: Vec<serde_json::Value> =
        include_str!("../../proto/golden/events.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut state = State::default();
    for kind in ["bootstrapped", "userCreated", "advertisementChanged"] {
        let line = golden.iter().find(|l| l["kind"] == kind).unwrap();
        let bytes = hex::decode(line["bytes"].as_str().unwrap()).unwrap();
        Rules::apply(&mut state, &Rules::decode(&bytes).unwrap());
    }
    assert_eq!(hex::encode(Sha256::digest(saved(&state))), OLD_DIGEST);
    for state in [&state, &Rules::load(&saved(&state)).unwrap()] {
        assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), [MemberId::FOUNDER]);
        assert_eq!(state.node_urls(), ["https://n2.example:8444"]);
        assert_eq!(state.api_urls(), ["https://a.example:8443"]);
    }
}

/// As computed by the version that wrote those events.
const OLD_DIGEST: &str = "1f559a3baac2837b94c35f5c3cc6230b179260c471223e94b9a1cd3c26d41f3c";

/// What an agent knows: folded from frames as an agent folds them.
#[derive(Default, Clone, Debug, PartialEq)]
struct Agent {
    checkpoint: String,
    own: Option<v1::Self_>,
    peers: BTreeMap<String, v1::Peer>,
    maps: u32,
    deltas: u32,
    gone: bool,
}

impl Agent {
    fn take(&mut self, frame: SyncFrame) {
        match frame.frame.unwrap() {
            Frame::Map(map) => {
                self.maps += 1;
                self.peers = map.peers.into_iter().map(|p| (p.node_id.clone(), p)).collect();
                assert!(!map.more);
                (self.own, self.checkpoint) = (map.self_, map.checkpoint);
            }
            Frame::Delta(delta) => {
                self.deltas += 1;
                delta.removed.iter().for_each(|id| drop(self.peers.remove(id)));
                self.peers.extend(delta.upserts.into_iter().map(|p| (p.node_id.clone(), p)));
                self.own = delta.self_.or(self.own.take());
                self.checkpoint = delta.checkpoint;
            }
            Frame::Heartbeat(h) => self.checkpoint = h.checkpoint,
            Frame::Bye(_) => self.gone = true,
            other => panic!("{other:?}"),
        }
    }

    /// Connects at its checkpoint and takes what comes.
    fn sync(&mut self, node: NodeId, run: &Run) {
        let mut session = Session::new(node, 0);
        let hello = v1::Hello { checkpoint: self.checkpoint.clone(), ..v1::Hello::default() };
        session.handle(0, SyncFrame { frame: Some(Frame::Hello(hello)) }).unwrap();
        let view = View { epoch: EPOCH, seq: Seq(run.seq), state: &run.state };
        while let Some(Output::Send(frame) | Output::Close(frame)) = session.poll(0, view) {
            self.take(frame);
            if self.gone {
                break;
            }
        }
    }

    fn knows(&self) -> (Option<v1::Self_>, BTreeMap<String, v1::Peer>) {
        (self.own.clone(), self.peers.clone())
    }
}

#[test]
fn a_delta_from_any_checkpoint_gives_what_a_full_map_gives() {
    let (mut by_delta, mut removed) = (0, 0);
    for seed in 0..40 {
        let mut run = Run::new(seed);
        let mut agents: BTreeMap<NodeId, Agent> = BTreeMap::new();
        for _ in 0..300 {
            run.step();
            let all: Vec<NodeId> = run.state.nodes().map(|node| node.id).collect();
            // Some agents are online and take every step, others sleep for long.
            for id in all {
                if id.0.as_bytes()[0].is_multiple_of(4) || run.rng.one_in(30) {
                    agents.entry(id).or_default().sync(id, &run);
                }
            }
        }
        for (id, agent) in &mut agents {
            agent.gone = false;
            agent.sync(*id, &run);
            let mut fresh = Agent::default();
            fresh.sync(*id, &run);
            assert_eq!(agent.gone, fresh.gone, "seed {seed} {id:?}");
            if agent.gone {
                removed += 1;
                continue;
            }
            assert_eq!(agent.knows(), fresh.knows(), "seed {seed} {id:?}");
            by_delta += agent.deltas;
            assert_eq!(fresh.maps, 1);
        }
    }
    assert!(by_delta > 1000 && removed > 100, "{by_delta} deltas, {removed} removed: the property was hardly tried");
}

#[test]
fn a_member_that_is_behind_an_agent_never_sends_older_data() {
    let mut run = Run::new(3);
    for _ in 0..300 {
        run.step();
    }
    let node = run.state.nodes().find(|node| place(&run.state, node.id).is_ok()).unwrap();
    let (id, ahead) = (node.id, Checkpoint { epoch: EPOCH, seq: Seq(run.seq + 10) }.to_string());
    let mut session = Session::new(id, 0);
    let hello = v1::Hello { checkpoint: ahead.clone(), ..v1::Hello::default() };
    session.handle(0, SyncFrame { frame: Some(Frame::Hello(hello)) }).unwrap();
    let view = View { epoch: EPOCH, seq: Seq(run.seq), state: &run.state };
    assert_eq!(session.poll(0, view), None);
    let beat = SyncFrame { frame: Some(Frame::Heartbeat(v1::Heartbeat { checkpoint: ahead })) };
    assert_eq!(session.poll(HEARTBEAT_MS, view), Some(Output::Send(beat)));
}

#[test]
fn another_epoch_gets_the_full_map_and_a_disabled_node_is_sent_away() {
    let mut run = Run::new(5);
    for _ in 0..300 {
        run.step();
    }
    for node in run.state.nodes() {
        let id = node.id;
        let mut agent =
            Agent { checkpoint: Checkpoint { epoch: Epoch([1; 16]), seq: Seq(1) }.to_string(), ..Agent::default() };
        agent.sync(id, &run);
        let disabled = node.status == Status::Disabled;
        assert_eq!((agent.maps, agent.gone), if disabled { (0, true) } else { (1, false) });
    }
}
