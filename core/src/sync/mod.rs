//! The server half of an agent's sync, sans-IO: a door moves bytes, this decides what is sent and when.
//!
//! ```text
//!  frames in ─► handle ─► Upward (endpoints, acks)         wake ─┐
//!  state ─────► poll(now, view) ─► Send(frame) │ Close(bye) ◄────┴─ deadline
//! ```
//! A session never sends older data than the agent has: while this member is behind the agent's checkpoint, it sends
//! heartbeats. A full map, or a large delta, goes out in parts of at most [`PART_BYTES`], all from one O(1) copy of the
//! state, one part a poll, so that back-pressure is the door's write and memory is bounded by the part.
//! Wake-ups are coalesced for [`COALESCE_MS`] after the first.

use crate::id::{Checkpoint, Epoch, NodeId, Seq};
use crate::map::{Place, place};
use crate::state::State;
use cvlan_proto::Message;
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use std::collections::VecDeque;

/// The longest frame either side may send.
pub const FRAME_MAX: usize = 1 << 20;
/// Where a part of a map or delta is closed.
pub const PART_BYTES: usize = 256 << 10;
/// How long changes are gathered after the first.
pub const COALESCE_MS: u64 = 20;
/// A heartbeat is sent after so much silence.
pub const HEARTBEAT_MS: u64 = 30_000;
/// Silence after which the other side is dead.
pub const DEAD_MS: u64 = 75_000;
/// An agent must say hello within this.
pub const HELLO_MS: u64 = 10_000;
/// An agent's endpoints become an event at most so often.
pub const ENDPOINTS_MS: u64 = 10_000;

/// The state that a session reads from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// The last applied event.
    pub seq: Seq,
    /// The state after it.
    pub state: &'a State,
}

/// What the door is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Write it.
    Send(SyncFrame),
    /// Write it, then close.
    Close(SyncFrame),
}

/// What an agent said that the door must act on.
#[derive(Clone, Debug, PartialEq)]
pub enum Upward {
    /// Nothing to do.
    Nothing,
    /// Its WireGuard socket is reachable there now: a command.
    Endpoints(Vec<String>),
    /// It runs this checkpoint.
    Acked(Checkpoint),
}

/// An agent's frame that makes no sense; the stream ends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SyncError {
    /// Not `32 hex . decimal`.
    #[error("hello or ack with a malformed checkpoint")]
    Checkpoint,
    /// A frame that only a server sends, or none.
    #[error("a frame that an agent does not send")]
    Direction,
    /// Anything before hello.
    #[error("the first frame must be hello")]
    HelloFirst,
    /// A second hello.
    #[error("hello was said before")]
    HelloTwice,
}

impl SyncError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Checkpoint => "sync_checkpoint",
            Self::Direction => "sync_direction",
            Self::HelloFirst => "sync_hello_first",
            Self::HelloTwice => "sync_hello_twice",
        }
    }
}

/// A map or delta that is going out in parts.
struct Sending {
    place: Place,
    to: Checkpoint,
    full: bool,
    own: Option<v1::Self_>,
    upserts: VecDeque<NodeId>,
    removed: VecDeque<NodeId>,
}

/// One agent's stream.
pub struct Session {
    node: NodeId,
    opened_ms: u64,
    /// What the agent has been sent; `None` before hello.
    sent: Option<Checkpoint>,
    /// The agent has nothing, or something that no delta starts from.
    needs_map: bool,
    sending: Option<Sending>,
    /// Look at the state at this time.
    due_ms: Option<u64>,
    last_sent_ms: u64,
    last_heard_ms: u64,
    endpoints: Option<Vec<String>>,
    endpoints_after_ms: u64,
}

impl Session {
    /// A stream of this node, whose certificate the door has checked.
    pub fn new(node: NodeId, now_ms: u64) -> Self {
        Self {
            node,
            opened_ms: now_ms,
            sent: None,
            needs_map: false,
            sending: None,
            due_ms: None,
            last_sent_ms: now_ms,
            last_heard_ms: now_ms,
            endpoints: None,
            endpoints_after_ms: now_ms,
        }
    }

    /// Its endpoints became an event not long ago, by another stream: they may again after so many ms.
    pub fn endpoints_wait(&mut self, wait_ms: u64) {
        self.endpoints_after_ms = self.endpoints_after_ms.saturating_add(wait_ms);
    }

    /// Takes one frame from the agent.
    pub fn handle(&mut self, now_ms: u64, frame: SyncFrame) -> Result<Upward, SyncError> {
        self.last_heard_ms = now_ms;
        match frame.frame {
            Some(Frame::Hello(hello)) => {
                if self.sent.is_some() {
                    return Err(SyncError::HelloTwice);
                }
                self.needs_map = hello.checkpoint.is_empty();
                let from = if self.needs_map { Checkpoint::default() } else { parse(&hello.checkpoint)? };
                self.sent = Some(from);
                self.due_ms = Some(now_ms);
                Ok(self.endpoints_said(now_ms, hello.endpoints))
            }
            _ if self.sent.is_none() => Err(SyncError::HelloFirst),
            Some(Frame::Ack(ack)) => Ok(Upward::Acked(parse(&ack.checkpoint)?)),
            Some(Frame::Endpoints(e)) => Ok(self.endpoints_said(now_ms, e.endpoints)),
            Some(Frame::Heartbeat(_)) => Ok(Upward::Nothing),
            Some(Frame::Map(_) | Frame::Delta(_) | Frame::Redirect(_) | Frame::Bye(_)) | None => {
                Err(SyncError::Direction)
            }
        }
    }

    fn endpoints_said(&mut self, now_ms: u64, endpoints: Vec<String>) -> Upward {
        if endpoints.is_empty() {
            return Upward::Nothing;
        }
        self.endpoints = Some(endpoints);
        self.endpoints_due(now_ms).map_or(Upward::Nothing, Upward::Endpoints)
    }

    /// Endpoints that may become an event now: the last ones said, at most one every [`ENDPOINTS_MS`].
    pub fn endpoints_due(&mut self, now_ms: u64) -> Option<Vec<String>> {
        if now_ms < self.endpoints_after_ms {
            return None;
        }
        let endpoints = self.endpoints.take()?;
        self.endpoints_after_ms = now_ms + ENDPOINTS_MS;
        Some(endpoints)
    }

    /// Something changed in a scope of this agent.
    pub fn wake(&mut self, now_ms: u64) {
        self.due_ms.get_or_insert(now_ms + COALESCE_MS);
    }

    /// When to call [`Session::poll`] next, if nothing else happens first.
    pub fn deadline(&self) -> u64 {
        if self.sent.is_none() {
            return self.opened_ms + HELLO_MS;
        }
        let mut at = (self.last_sent_ms + HEARTBEAT_MS).min(self.last_heard_ms + DEAD_MS);
        if self.sending.is_some() {
            return self.last_sent_ms;
        }
        if self.endpoints.is_some() {
            at = at.min(self.endpoints_after_ms);
        }
        self.due_ms.map_or(at, |due| at.min(due))
    }

    /// What to do now. Call again until it gives `None`; then wait for a frame, a wake-up or the deadline.
    pub fn poll(&mut self, now_ms: u64, view: View<'_>) -> Option<Output> {
        let Some(sent) = self.sent else {
            let silent = now_ms >= self.opened_ms + HELLO_MS;
            return silent.then(|| bye("sync_silent", "no hello came"));
        };
        if now_ms >= self.last_heard_ms + DEAD_MS {
            return Some(bye("sync_silent", "nothing was heard from the agent"));
        }
        // A refusal ends the stream at once, also in the middle of a map.
        let here = match place(view.state, self.node) {
            Ok(here) => here,
            Err(refusal) => return Some(bye(refusal.code(), refusal.detail())),
        };
        if self.sending.is_none() && self.due_ms.is_some_and(|due| due <= now_ms) {
            self.due_ms = None;
            self.sending = self.begin(here, sent, view);
        }
        if self.sending.is_some() {
            self.last_sent_ms = now_ms;
            return self.next_part().map(Output::Send);
        }
        if now_ms >= self.last_sent_ms + HEARTBEAT_MS {
            self.last_sent_ms = now_ms;
            return Some(Output::Send(self.heartbeat(sent, view)));
        }
        None
    }

    /// True where a map or delta goes out at the next poll, or may.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.sending.is_some() || self.due_ms.is_some_and(|due| due <= now_ms)
    }

    /// A heartbeat before its time: the last word of a poll that nothing came of.
    pub fn keepalive(&mut self, view: View<'_>) -> SyncFrame {
        self.heartbeat(self.sent.unwrap_or_default(), view)
    }

    fn begin(&mut self, here: Place, sent: Checkpoint, view: View<'_>) -> Option<Sending> {
        let to = Checkpoint { epoch: view.epoch, seq: view.seq };
        if sent.epoch == view.epoch && sent.seq > view.seq {
            return None; // This member is behind the agent: wait, never go back.
        }
        if self.needs_map || !here.can_delta(view.epoch, sent) {
            self.needs_map = false;
            let upserts = here.peer_ids().into_iter().collect();
            let own = Some(here.own());
            return Some(Sending { place: here, to, full: true, own, upserts, removed: VecDeque::new() });
        }
        if !here.changed(sent.seq) {
            return None;
        }
        let changes = here.changes(sent.seq);
        Some(Sending {
            place: here,
            to,
            full: false,
            own: changes.own,
            upserts: changes.upserts.into(),
            removed: changes.removed.into(),
        })
    }

    fn next_part(&mut self) -> Option<SyncFrame> {
        let sending = self.sending.as_mut()?;
        let checkpoint = sending.to.to_string();
        let (mut peers, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < PART_BYTES {
            if let Some(id) = sending.removed.pop_front() {
                bytes += 40;
                removed.push(id.to_string());
            } else if let Some(id) = sending.upserts.pop_front() {
                if let Some(peer) = sending.place.peer(id) {
                    bytes += peer.encoded_len() + 4;
                    peers.push(peer);
                }
            } else {
                break;
            }
        }
        let more = !sending.upserts.is_empty() || !sending.removed.is_empty();
        let own = sending.own.take();
        let frame = if sending.full {
            Frame::Map(v1::Map { checkpoint, self_: own, peers, more })
        } else {
            Frame::Delta(v1::Delta { checkpoint, self_: own, upserts: peers, removed, more })
        };
        if !more {
            self.sent = Some(sending.to);
            self.sending = None;
        }
        Some(SyncFrame { frame: Some(frame) })
    }

    /// Nothing changed: moves the agent's checkpoint forward, never back.
    fn heartbeat(&mut self, sent: Checkpoint, view: View<'_>) -> SyncFrame {
        let caught_up = self.due_ms.is_none() && sent.epoch == view.epoch && sent.seq <= view.seq;
        let still = caught_up && place(view.state, self.node).is_ok_and(|p| !p.changed(sent.seq));
        let to = if still { Checkpoint { epoch: view.epoch, seq: view.seq } } else { sent };
        self.sent = Some(to);
        SyncFrame { frame: Some(Frame::Heartbeat(v1::Heartbeat { checkpoint: to.to_string() })) }
    }
}

fn parse(text: &str) -> Result<Checkpoint, SyncError> {
    text.parse().map_err(|_| SyncError::Checkpoint)
}

fn bye(code: &str, detail: &str) -> Output {
    let bye = v1::Bye { code: code.to_owned(), detail: detail.to_owned() };
    Output::Close(SyncFrame { frame: Some(Frame::Bye(bye)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given::{World, cvlan, given, machine, node, tenant};
    use crate::id::NodeId;
    use crate::node::{Device, NodeCommand};
    use crate::{Actor, Wish};

    const EPOCH: Epoch = Epoch([1; 16]);

    fn frame(frame: Frame) -> SyncFrame {
        SyncFrame { frame: Some(frame) }
    }

    fn hello(checkpoint: &str) -> SyncFrame {
        frame(Frame::Hello(v1::Hello { checkpoint: checkpoint.into(), ..v1::Hello::default() }))
    }

    fn view(w: &World) -> View<'_> {
        View { epoch: EPOCH, seq: Seq(w.seq), state: &w.state }
    }

    /// A world with `n` plain devices and machine 200 beside them.
    fn crowd(n: u64) -> World {
        let mut w = given();
        w.ok(crate::given::cvlan_create(1, 9, "big", "10.64.0.0/10", ""));
        for i in 0..n {
            let mut wg_key = [0xee; 32];
            wg_key[..8].copy_from_slice(&i.to_le_bytes());
            let id = NodeId(uuid::Uuid::from_u128(0x9_0000_0000 + u128::from(i)));
            let (tags, endpoints) = (Vec::new(), vec!["192.0.2.1:51820".to_owned()]);
            let (tenant, cvlan, name) = (tenant(1), cvlan(9), format!("device-{i}"));
            let devices = vec![Device { cvlan, id, name, wg_key, tags, endpoints }];
            w.ok(Wish::Node(NodeCommand::Create { tenant, devices }));
        }
        let (tenant, cvlan, id, tags) = (tenant(1), cvlan(9), node(200), Vec::new());
        let me = Device { cvlan, id, name: "me".into(), wg_key: [2; 32], tags, endpoints: vec![] };
        w.ok(Wish::Node(NodeCommand::Create { tenant, devices: vec![me] }));
        w
    }

    #[test]
    fn a_large_map_comes_in_bounded_parts_of_one_state_even_while_it_changes() {
        let mut w = crowd(5000);
        let mut s = Session::new(node(200), 0);
        s.handle(0, hello("")).unwrap();
        let (mut peers, mut parts, mut checkpoints) = (0, 0, Vec::new());
        while let Some(Output::Send(f)) = s.poll(0, view(&w)) {
            assert!(f.encoded_len() <= PART_BYTES + 4096);
            let Some(Frame::Map(map)) = f.frame else { panic!("not a map") };
            assert_eq!(map.self_.is_some(), parts == 0);
            (peers, parts) = (peers + map.peers.len(), parts + 1);
            checkpoints.push(map.checkpoint);
            let id = NodeId(uuid::Uuid::from_u128(0x9_0000_0000 + parts as u128));
            w.when(Actor::System, Wish::Node(NodeCommand::Delete { tenant: tenant(1), id })).unwrap();
            s.wake(0);
            if !map.more {
                break;
            }
        }
        assert!(parts > 1 && peers == 5000, "{parts} parts, {peers} peers");
        checkpoints.dedup();
        assert_eq!(checkpoints.len(), 1);
        // What changed meanwhile follows as a delta.
        let Some(Output::Send(f)) = s.poll(COALESCE_MS, view(&w)) else { panic!("no delta") };
        let Some(Frame::Delta(delta)) = f.frame else { panic!("not a delta") };
        assert_eq!(delta.removed.len(), parts);
    }

    #[test]
    fn changes_are_gathered_before_they_are_sent() {
        let mut w = given();
        w.register(machine(1)).unwrap();
        let mut s = Session::new(node(1), 0);
        s.handle(0, hello("")).unwrap();
        assert!(matches!(s.poll(0, view(&w)), Some(Output::Send(_))));
        w.register(machine(2)).unwrap();
        s.wake(100);
        assert_eq!((s.poll(100, view(&w)), s.deadline()), (None, 100 + COALESCE_MS));
        s.wake(110);
        let Some(Output::Send(f)) = s.poll(100 + COALESCE_MS, view(&w)) else { panic!("nothing") };
        let Some(Frame::Delta(delta)) = f.frame else { panic!("not a delta") };
        assert_eq!((delta.upserts.len(), delta.self_), (1, None));
        assert_eq!(s.poll(100 + COALESCE_MS, view(&w)), None);
    }

    #[test]
    fn silence_ends_a_stream_and_so_does_deletion() {
        let mut w = given();
        w.register(machine(1)).unwrap();
        let code = |out: Option<Output>| match out {
            Some(Output::Close(SyncFrame { frame: Some(Frame::Bye(bye)) })) => bye.code,
            other => panic!("{other:?}"),
        };
        let mut mute = Session::new(node(1), 0);
        assert_eq!(mute.poll(HELLO_MS - 1, view(&w)), None);
        assert_eq!(code(mute.poll(HELLO_MS, view(&w))), "sync_silent");
        let mut s = Session::new(node(1), 0);
        s.handle(0, hello("")).unwrap();
        while s.poll(0, view(&w)).is_some() {}
        assert_eq!(code(s.poll(DEAD_MS, view(&w))), "sync_silent");
        w.ok(Wish::Node(NodeCommand::Delete { tenant: tenant(1), id: node(1) }));
        assert_eq!(code(s.poll(1, view(&w))), "node_deleted");
    }

    #[test]
    fn endpoints_become_an_event_at_most_every_ten_seconds() {
        let mut s = Session::new(node(1), 0);
        s.handle(0, hello("")).unwrap();
        let said = |n: u8| frame(Frame::Endpoints(v1::Endpoints { endpoints: vec![format!("192.0.2.{n}:1")] }));
        assert_eq!(s.handle(0, said(1)), Ok(Upward::Endpoints(vec!["192.0.2.1:1".into()])));
        assert_eq!(s.handle(1, said(2)), Ok(Upward::Nothing));
        assert_eq!(s.handle(2, said(3)), Ok(Upward::Nothing));
        assert_eq!(s.endpoints_due(ENDPOINTS_MS - 1), None);
        assert!(s.deadline() <= ENDPOINTS_MS);
        assert_eq!(s.endpoints_due(ENDPOINTS_MS), Some(vec!["192.0.2.3:1".into()]), "the last one said");
    }

    #[test]
    fn frames_that_make_no_sense() {
        let down = || frame(Frame::Map(v1::Map::default()));
        for (frames, error) in [
            (vec![frame(Frame::Ack(v1::Ack::default()))], SyncError::HelloFirst),
            (vec![hello("x")], SyncError::Checkpoint),
            (vec![hello(""), hello("")], SyncError::HelloTwice),
            (vec![hello(""), down()], SyncError::Direction),
            (vec![hello(""), SyncFrame { frame: None }], SyncError::Direction),
            (vec![hello(""), frame(Frame::Ack(v1::Ack { checkpoint: "1.1".into() }))], SyncError::Checkpoint),
        ] {
            let mut s = Session::new(node(1), 0);
            let last = frames.into_iter().map(|f| s.handle(0, f)).last();
            assert_eq!(last, Some(Err(error)));
        }
    }
}
