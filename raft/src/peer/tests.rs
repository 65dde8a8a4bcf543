//! A member and somebody who speaks to it by hand: what is refused, and what closes a connection.

use crate::counter::{Command, Counter, Refused};
use crate::disk::FileDisk;
use crate::error::{MemberError, WriteError};
use crate::member::Member;
use crate::options::Options;
use crate::peer::codec::{
    self, ADDED, Answer, Change, FRAME_MAX, Hello, Message, PROTOCOL, Parcel, Refusal, Request, put_entries,
};
use crate::peer::link::{CallError, Link};
use crate::peer::{CHUNK_BYTES, CLUSTER, Dial, Known};
use crate::transport::{NoTransport, Pipe};
use crate::types::{Cfg, Entry, LeaderId, LogId, Payload, Vote};
use bytes::Bytes;
use cvlan_core::id::Epoch;
use cvlan_core::machine::SystemFact;
use openraft::async_runtime::{MpscReceiver, MpscSender};
use openraft::base::BoxFuture;
use openraft::type_config::TypeConfigExt;
use openraft_rt_tokio::TokioRuntime as Rt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const EPOCH: Epoch = Epoch([7; 16]);
const PATIENCE: Duration = Duration::from_secs(20);

fn pipes() -> (Pipe<Rt>, Pipe<Rt>) {
    let (to, from) = (Cfg::<Rt>::mpsc(8), Cfg::<Rt>::mpsc(8));
    (Pipe { tx: to.0, rx: from.1 }, Pipe { tx: from.0, rx: to.1 })
}

async fn member() -> (TempDir, Member<Counter, Rt>) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::single(FileDisk::open(folder.path()).unwrap());
    let member = Member::open(options, NoTransport).await.unwrap();
    assert!(member.writable(PATIENCE).await);
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    (folder, member)
}

fn hello() -> Hello {
    Hello { epoch: EPOCH.0, from: 9, to: 1, cluster: CLUSTER.into(), level: 1 }
}

/// Connects as member 9, which may vote.
fn connect(member: &Member<Counter, Rt>) -> Pipe<Rt> {
    connect_as(member, true)
}

fn connect_as(member: &Member<Counter, Rt>, votes: bool) -> Pipe<Rt> {
    let (ours, theirs) = pipes();
    let member = member.clone();
    tokio::spawn(async move { member.accept(Some(9), votes, theirs).await });
    ours
}

async fn next(pipe: &mut Pipe<Rt>) -> Option<Message> {
    let frame = tokio::time::timeout(PATIENCE, pipe.rx.recv()).await.unwrap()?;
    Some(codec::read(&frame).unwrap().0)
}

async fn greeted(member: &Member<Counter, Rt>) -> Pipe<Rt> {
    hello_said(connect(member)).await
}

async fn hello_said(mut pipe: Pipe<Rt>) -> Pipe<Rt> {
    pipe.tx.send(codec::frame(&Message::Hello(hello()), &[ADDED])).await.unwrap();
    let theirs = Hello { from: 1, to: 9, ..hello() };
    assert_eq!(next(&mut pipe).await, Some(Message::Hello(theirs)));
    pipe
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_welcome_is_told_why() {
    let (_folder, member) = member().await;
    let refused = |hello: Hello, refusal: Refusal| (codec::frame(&Message::Hello(hello), &[]), refusal);
    let mut newer = codec::frame(&Message::Hello(hello()), &[]).to_vec();
    newer[0] = PROTOCOL + 1;
    let cases = [
        refused(Hello { epoch: [8; 16], ..hello() }, Refusal::Epoch(EPOCH.0)),
        refused(Hello { to: 2, ..hello() }, Refusal::To(1)),
        refused(Hello { from: 8, ..hello() }, Refusal::From),
        refused(Hello { cluster: "etcd".into(), ..hello() }, Refusal::Cluster),
        (newer.into(), Refusal::Protocol { asked: PROTOCOL + 1, known: PROTOCOL }),
    ];
    for (frame, refusal) in cases {
        let mut pipe = connect(&member);
        pipe.tx.send(frame).await.unwrap();
        assert_eq!(next(&mut pipe).await, Some(Message::Refused(refusal.clone())));
        assert_eq!(next(&mut pipe).await, None, "{refusal}");
    }
    // Without a log of its own it belongs to nobody yet.
    let mut pipe = connect(&member);
    pipe.tx.send(codec::frame(&Message::Hello(Hello { epoch: [0; 16], ..hello() }), &[])).await.unwrap();
    assert!(matches!(next(&mut pipe).await, Some(Message::Hello(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_may_not_come_closes_the_connection_and_nothing_else() {
    let (_folder, member) = member().await;
    let request = |request: Request, body: &[u8]| codec::frame(&Message::Request(1, request), body);
    let ping = request(Request::Ping { wall_ms: 300 }, &[]);
    let entry =
        |index| Entry { log_id: LogId { leader_id: LeaderId { term: 1, node_id: 9 }, index }, payload: Payload::Blank };
    let vote = (&Vote { leader_id: LeaderId { term: 1, node_id: 9 }, committed: true }).into();
    let theirs = (&Vote { leader_id: LeaderId { term: 1, node_id: 8 }, committed: true }).into();
    let append = |body: &[u8]| request(Request::Append { vote, prev: None, commit: None }, body);
    let mut long = vec![PROTOCOL];
    long.resize(FRAME_MAX + 1, 0);
    let mut frames = vec![
        Bytes::new(),
        Bytes::from_static(&[PROTOCOL]),
        Bytes::from_static(&[PROTOCOL, 0xff, 0xff]),
        Bytes::from_static(b"GET / HTTP/1.1"),
        // A length that nobody has room for.
        Bytes::from_static(&[
            PROTOCOL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 253, 255, 255, 255, 255, 255, 255, 255,
            127,
        ]),
        long.into(),
        codec::frame(&Message::Hello(hello()), &[]),
        codec::frame(&Message::Answer(1, Answer::Appended), &[]),
        request(Request::ReadIndex, b"x"),
        append(&put_entries(&[entry(0), entry(2)])),
        // In another's name.
        request(Request::Append { vote: theirs, prev: None, commit: None }, &[]),
        request(Request::AppendParts { vote: theirs, prev: None, commit: None, of: 0, length: 0 }, &[]),
        request(Request::AppendParts { vote, prev: None, commit: None, of: 0, length: 0 }, b"x"),
        request(Request::Vote { pre: false, vote: theirs, last: None, transfer: true }, &[]),
        request(Request::Transfer { from: theirs, to: 1, last: None }, &[]),
        request(Request::Install { vote: theirs, digest: [0; 32] }, &[]),
        append(&[9, 0, 0, 0, 1]),
        append(&[1, 0, 0, 0, 9]),
        request(Request::Chunk { digest: [0; 32], offset: 0 }, &vec![0; CHUNK_BYTES + 1]),
        request(Request::Write { epoch: EPOCH.0, first: None }, &[0xfe]),
    ];
    frames.extend((0..ping.len()).map(|end| ping.slice(..end)));
    for frame in frames {
        let mut pipe = greeted(&member).await;
        let what = hex::encode(&frame[..frame.len().min(64)]);
        pipe.tx.send(frame).await.unwrap();
        assert_eq!(next(&mut pipe).await, None, "{what}");
    }
    // Before the hello.
    let mut pipe = connect(&member);
    pipe.tx.send(ping.clone()).await.unwrap();
    assert_eq!(next(&mut pipe).await, None);
    let mut pipe = greeted(&member).await;
    pipe.tx.send(ping).await.unwrap();
    let answer = next(&mut pipe).await;
    assert!(matches!(answer, Some(Message::Answer(1, Answer::Pong { known: false, leads: true, .. }))), "{answer:?}");
    member.write(Command::add(1)).await.unwrap();
    member.shutdown().await;
    assert_eq!(next(&mut pipe).await, None, "a member that stops hangs up");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_proves_no_voter_says_nothing_of_rafts() {
    let (_folder, member) = member().await;
    let vote = (&Vote { leader_id: LeaderId { term: 99, node_id: 9 }, committed: true }).into();
    let log_id = LogId { leader_id: LeaderId { term: 99, node_id: 9 }, index: 50 };
    let members = (&openraft::Membership::new_with_defaults(vec![[9u64].into()], [])).into();
    let parcel = Parcel { last: None, members_at: None, members, saved: 1, length: 1, digest: [0; 32] };
    let before = member.status();
    for request in [
        Request::Append { vote, prev: None, commit: None },
        Request::Part { of: 1, offset: 0 },
        Request::AppendParts { vote, prev: None, commit: None, of: 1, length: 0 },
        Request::Vote { pre: true, vote, last: Some((&log_id).into()), transfer: false },
        Request::Vote { pre: false, vote, last: Some((&log_id).into()), transfer: true },
        Request::Transfer { from: vote, to: 1, last: None },
        Request::Snapshot(Box::new(parcel)),
        Request::Chunk { digest: [0; 32], offset: 0 },
        Request::Install { vote, digest: [0; 32] },
    ] {
        let mut pipe = hello_said(connect_as(&member, false)).await;
        pipe.tx.send(codec::frame(&Message::Request(1, request.clone()), &[])).await.unwrap();
        assert_eq!(next(&mut pipe).await, None, "{request:?}");
    }
    let after = member.status();
    assert_eq!((after.term, after.leader, after.last_index), (before.term, Some(1), before.last_index));
    let mut pipe = hello_said(connect_as(&member, false)).await;
    assert!(matches!(asked(&mut pipe, Request::Ping { wall_ms: 1 }, &[]).await.0, Answer::Pong { .. }));
    // From one that may vote it is believed.
    let mut pipe = greeted(&member).await;
    asked(&mut pipe, Request::Vote { pre: false, vote, last: Some((&log_id).into()), transfer: true }, &[]).await;
    // Raft answers first, and then says what it does.
    let said = async {
        while member.status().term != 99 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.unwrap();
    member.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_in_parts_are_taken_once_all_are_there() {
    let (_folder, member) = member().await;
    let mut pipe = greeted(&member).await;
    let leader_id = LeaderId { term: 99, node_id: 9 };
    let vote = (&Vote { leader_id, committed: true }).into();
    let prev = Some((&LogId { leader_id, index: 50 }).into());
    let entries = put_entries(&[Entry { log_id: LogId { leader_id, index: 51 }, payload: Payload::Blank }]);
    let (first, rest) = entries.split_at(5);
    let all = |of, length| Request::AppendParts { vote, prev, commit: None, of, length };
    let length = entries.len() as u64;
    assert_eq!(asked(&mut pipe, Request::Part { of: 1, offset: 0 }, first).await.0, Answer::Have { offset: 5 });
    for early in [all(1, length), all(1, 6), all(2, 5), Request::Part { of: 1, offset: 6 }] {
        let body: &[u8] = if let Request::Part { .. } = early { rest } else { &[] };
        assert!(matches!(asked(&mut pipe, early, body).await.0, Answer::Unable(_)));
    }
    assert_eq!(asked(&mut pipe, Request::Part { of: 1, offset: 5 }, rest).await.0, Answer::Have { offset: length });
    // They are read; nothing here goes before them.
    assert_eq!(asked(&mut pipe, all(1, length), &[]).await.0, Answer::Conflict);
    assert!(matches!(asked(&mut pipe, all(1, length), &[]).await.0, Answer::Unable(_)), "they were taken");
    // A version from before says nothing of parts: it sends none, and is sent none.
    let mut before = connect(&member);
    before.tx.send(codec::frame(&Message::Hello(hello()), &[])).await.unwrap();
    assert!(matches!(next(&mut before).await, Some(Message::Hello(_))));
    let part = Message::Request(1, Request::Part { of: 1, offset: 0 });
    before.tx.send(codec::frame(&part, first)).await.unwrap();
    assert_eq!(next(&mut before).await, None);
    member.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_parts_is_put_together_and_is_no_longer_than_a_frame() {
    let (ours, theirs) = pipes();
    let (link, _) = link(vec![ours]);
    let call = |link: Arc<Link<Rt>>| tokio::spawn(async move { link.call(Request::ReadIndex, &[], PATIENCE).await });
    let first = call(link.clone());
    let mut theirs = greets(theirs).await;
    assert!(matches!(next(&mut theirs).await, Some(Message::Request(1, _))));
    let second = call(link.clone());
    assert!(matches!(next(&mut theirs).await, Some(Message::Request(2, _))));
    let read = |id| Message::Answer(id, Answer::Read { index: id });
    for (message, body) in [
        (Message::Part(1), &b"a"[..]),
        (Message::Part(2), b"b"),
        (Message::Part(1), b"c"),
        (read(2), b""),
        (read(1), b"d"),
    ] {
        theirs.tx.send(codec::frame(&message, body)).await.unwrap();
    }
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!(first, (Answer::Read { index: 1 }, Bytes::from_static(b"acd")));
    assert_eq!(second, (Answer::Read { index: 2 }, Bytes::from_static(b"b")));

    let third = call(link.clone());
    assert!(matches!(next(&mut theirs).await, Some(Message::Request(3, _))));
    let part = codec::frame(&Message::Part(3), &vec![0; FRAME_MAX - 64]);
    for _ in 0..2 {
        theirs.tx.send(part.clone()).await.unwrap();
    }
    assert_eq!(third.await.unwrap(), Err(CallError::Lost));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_come_one_after_the_other() {
    let (_folder, member) = member().await;
    let note = Bytes::from(vec![7; 3 << 20]);
    member.write(Command::Add { by: 1, times: 1, note, once: None }).await.unwrap();
    let mut pipe = greeted(&member).await;
    for id in 1..=3 {
        let frame = codec::frame(&Message::Request(id, Request::Past { from: 0, end: u64::MAX }), &[]);
        pipe.tx.send(frame).await.unwrap();
    }
    // All three wait for room.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut ids: Vec<u64> = Vec::new();
    let mut whole = 0;
    while whole < 3 {
        let id = match next(&mut pipe).await {
            Some(Message::Part(id)) => id,
            Some(Message::Answer(id, _)) => {
                whole += 1;
                id
            }
            other => panic!("{other:?}"),
        };
        ids.push(id);
    }
    assert!(ids.len() > 3 * 40, "each in parts of 64 KiB");
    ids.dedup();
    assert_eq!(ids.len(), 3, "the parts of one are not between those of another");
    member.shutdown().await;
}

/// Questions whose answers are large are not taken up without end where nobody takes the answers.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_history_and_does_not_read_it_is_not_read_either() {
    let (_folder, member) = member().await;
    let mut pipe = greeted(&member).await;
    let mut sent = 0;
    loop {
        let frame = codec::frame(&Message::Request(sent, Request::Past { from: 0, end: u64::MAX }), &[]);
        match tokio::time::timeout(Duration::from_secs(1), pipe.tx.send(frame)).await {
            Ok(taken) => taken.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(sent < 100, "it takes all of them");
    }
    for _ in 0..sent {
        assert!(matches!(next(&mut pipe).await, Some(Message::Answer(..))));
    }
}

async fn asked(pipe: &mut Pipe<Rt>, request: Request, body: &[u8]) -> (Answer, Bytes) {
    pipe.tx.send(codec::frame(&Message::Request(1, request), body)).await.unwrap();
    let frame = tokio::time::timeout(PATIENCE, pipe.rx.recv()).await.unwrap().unwrap();
    let (Message::Answer(1, answer), body) = codec::read(&frame).unwrap() else { panic!("no answer") };
    (answer, body)
}

async fn sent(pipe: &mut Pipe<Rt>, command: Command) -> Result<(), WriteError<Refused>> {
    let mut body = Vec::new();
    codec::put(&command, &mut body);
    match asked(pipe, Request::Write { epoch: EPOCH.0, first: None }, &body).await {
        (Answer::Written { .. }, _) => Ok(()),
        (Answer::Refused, body) => Err(codec::get(&body).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_may_not_ask_for_is_refused_and_changes_nothing() {
    let (_folder, member) = member().await;
    let mut pipe = greeted(&member).await;
    let not = |what: &str| Err(WriteError::NotAllowed { member: 9, command: what.into() });
    let numbered = |session| Command::add_once(1, session, 1);
    assert_eq!(sent(&mut pipe, Command::add(1)).await, not("any command: it is no member"));
    member.learner_add(9, "nine:1".into()).await.unwrap();
    assert_eq!(sent(&mut pipe, Command::add(1)).await, Ok(()));
    let before = (member.head().seq, member.head().members.clone());
    assert_eq!(sent(&mut pipe, Command::Refuse).await, not("refuse"));
    for fact in [
        SystemFact::CheckpointOpened,
        SystemFact::Checkpointed { seq: before.0, root: [0; 32], digest: [0; 32] },
        SystemFact::EpochBegun { previous: EPOCH, member: 9 },
    ] {
        assert_eq!(sent(&mut pipe, Command::System(fact)).await, not("system"));
    }
    assert_eq!(sent(&mut pipe, numbered(1)).await, not("a command under another's number"));
    let learner = Change::Learner { id: 10, address: "ten:1".into() };
    for change in [Change::Promote { id: 9 }, Change::Remove { id: 1 }, Change::Transfer { to: Some(9) }, learner] {
        let (answer, _) = asked(&mut pipe, Request::Change(change), &[]).await;
        assert_eq!(answer, Answer::Failed(MemberError::NotAllowed(9)));
    }
    let (answer, body) = asked(&mut pipe, Request::Checkpoint, &[]).await;
    assert_eq!((answer, codec::get(&body).unwrap()), (Answer::Refused, not("a checkpoint").unwrap_err()));
    assert_eq!((member.head().seq, member.head().members.clone()), before);
    assert_eq!(member.status().not_allowed, 11);
    assert_eq!(sent(&mut pipe, numbered(9 << 32 | 9)).await, Ok(()), "under its own");
    member.shutdown().await;
}

/// Hands out one end of a connection; the other waits for the test.
struct Hand(Mutex<Vec<Pipe<Rt>>>);

impl Dial<Rt> for Hand {
    fn dial<'a>(&'a self, _to: u64, _address: &'a str) -> BoxFuture<'a, io::Result<Pipe<Rt>>> {
        let pipe = self.0.lock().unwrap().pop().ok_or(io::ErrorKind::ConnectionRefused);
        Box::pin(async move { Ok(pipe?) })
    }
}

/// Greets who dials.
async fn greets(mut theirs: Pipe<Rt>) -> Pipe<Rt> {
    assert!(matches!(next(&mut theirs).await, Some(Message::Hello(_))));
    let welcome = Hello { from: 1, to: 9, ..hello() };
    theirs.tx.send(codec::frame(&Message::Hello(welcome), &[ADDED])).await.unwrap();
    theirs
}

fn link(pipes: Vec<Pipe<Rt>>) -> (Arc<Link<Rt>>, Arc<Hand>) {
    let hand = Arc::new(Hand(Mutex::new(pipes)));
    let clock = Arc::new(crate::clock::SystemClock::default());
    let link = Link::<Rt>::new((9, 1, Known { level: 1, added: ADDED }), hand.clone(), clock, Arc::new(|| EPOCH));
    link.moved("there");
    (link, hand)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_renewed_still_brings_what_is_on_its_way() {
    let ((first, theirs), (second, others)) = (pipes(), pipes());
    let (link, _) = link(vec![second, first]);
    let call = |link: Arc<Link<Rt>>| tokio::spawn(async move { link.call(Request::ReadIndex, &[], PATIENCE).await });
    let before = call(link.clone());
    let mut theirs = greets(theirs).await;
    assert_eq!(next(&mut theirs).await, Some(Message::Request(1, Request::ReadIndex)));
    link.renew();
    let after = call(link.clone());
    let mut others = greets(others).await;
    assert_eq!(next(&mut others).await, Some(Message::Request(1, Request::ReadIndex)));
    for (pipe, call) in [(&theirs, before), (&others, after)] {
        pipe.tx.send(codec::frame(&Message::Answer(1, Answer::Appended), &[])).await.unwrap();
        assert_eq!(call.await.unwrap().map(|(answer, _)| answer), Ok(Answer::Appended));
    }
    assert_eq!(next(&mut theirs).await, None, "and is closed then");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_up_connections_and_closes_them_is_not_dialled_all_the_time() {
    let mut ends: Vec<_> = (0..1000).map(|_| pipes()).collect();
    let theirs: Vec<_> = ends.iter_mut().map(|(_, theirs)| std::mem::replace(theirs, pipes().0)).collect();
    let (link, hand) = link(ends.into_iter().map(|(ours, _)| ours).collect());
    let closes = tokio::spawn(async move {
        for pipe in theirs.into_iter().rev() {
            drop(greets(pipe).await);
        }
    });
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(400) {
        assert!(link.call(Request::ReadIndex, &[], PATIENCE).await.is_err());
    }
    let dialled = 1000 - hand.0.lock().unwrap().len();
    assert!((1..=5).contains(&dialled), "at 0, 50, 150 and 350 ms, and not {dialled} times");
    closes.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_hears_of_a_lost_connection_and_of_nonsense() {
    let answer = |id| codec::frame(&Message::Answer(id, Answer::Appended), &[]);
    let cases: [(&str, Vec<Bytes>, Result<Answer, CallError>); 4] = [
        ("its answer", vec![answer(1)], Ok(Answer::Appended)),
        ("a loss", vec![], Err(CallError::Lost)),
        ("nonsense", vec![Bytes::from_static(b"nonsense")], Err(CallError::Lost)),
        ("an answer to nothing", vec![answer(7)], Err(CallError::Lost)),
    ];
    for (what, frames, expected) in cases {
        let (ours, theirs) = pipes();
        let (link, _) = link(vec![ours]);
        let call = {
            let link = link.clone();
            tokio::spawn(async move { link.call(Request::ReadIndex, &[], PATIENCE).await })
        };
        let mut theirs = greets(theirs).await;
        assert_eq!(next(&mut theirs).await, Some(Message::Request(1, Request::ReadIndex)));
        for frame in frames {
            theirs.tx.send(frame).await.unwrap();
        }
        if expected == Err(CallError::Lost) {
            drop(theirs);
        }
        assert_eq!(call.await.unwrap().map(|(answer, _)| answer), expected, "{what}");
    }
}
