//! The desk by itself, with a clock in hand.

use super::*;
use crate::clock::SystemClock;
use crate::counter::{Command, Counter};
use crate::types::{Cfg, LeaderId};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use openraft_rt_tokio::TokioRuntime as Rt;
use std::sync::atomic::AtomicU64;

type Waiting = OneshotReceiverOf<Cfg<Rt>, Reply<Counter>>;

#[derive(Default)]
struct Hands(AtomicU64);

impl Clock for Hands {
    fn wall_ms(&self) -> u64 {
        SystemClock::default().wall_ms()
    }
    fn monotonic_us(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

struct Case {
    desk: Desk<Counter, Rt>,
    hands: Arc<Hands>,
    callers: Vec<Waiting>,
}

fn leader(term: u64) -> Leader {
    LeaderId { term, node_id: 1 }
}

impl Case {
    fn new(entry_commands: usize) -> Self {
        let hands = Arc::new(Hands::default());
        let limits = Limits { in_flight: 2, entry_commands, ..Limits::default() };
        let desk = Desk::new(hands.clone(), Arc::default(), limits, Plant::default());
        let case = Self { desk, hands, callers: Vec::new() };
        case.open(1);
        case
    }

    fn open(&self, term: u64) {
        self.desk.overtaken(leader(term));
        self.desk.open(leader(term), Head { seq: Seq(1), ..Head::default() });
    }

    fn push(&mut self, by: u64) {
        let (tx, rx) = Cfg::<Rt>::oneshot();
        self.desk.push(Box::new(Command::add(by)), None, tx).unwrap();
        self.callers.push(rx);
    }

    /// What the next turn would decide; `None` if it has to wait.
    fn turn(&self) -> Option<Turn<Counter, Rt>> {
        match self.desk.poll_turn(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    /// Takes a turn and launches it; returns its frame and serial number.
    fn fly(&self) -> (Frame, u64) {
        self.launch(self.turn().unwrap()).unwrap()
    }

    fn launch(&self, turn: Turn<Counter, Rt>) -> Option<(Frame, u64)> {
        let term = turn.term;
        let batch = crate::sequencer::decide(turn, &self.desk.limits);
        let frame = Frame(Bytes::from(batch.raw.concat()));
        let flight = Flight {
            leader: leader(1),
            serial: 0,
            proposed_us: self.hands.0.load(Relaxed),
            frame: frame.clone(),
            epoch: Epoch::default(),
            first_seq: batch.first_seq,
            prev_root: batch.prev_root,
            head: batch.head,
            noted: batch.noted,
            events: Arc::new(batch.events),
            raw: batch.raw,
            decided: batch.decided,
            refused: false,
        };
        Some((frame, self.desk.launch(term, batch.rest, flight)?))
    }

    fn land(&self, frame: &Frame) {
        let flight = self.desk.land(frame).unwrap();
        self.desk.answer(flight.decided, &flight.events, flight.first_seq, flight.epoch);
    }

    /// Additions that the next turns would decide, in order.
    fn next(&self) -> Option<Vec<u64>> {
        let by = |item: &Item<Counter, Rt>| match &*item.command {
            Command::Add { by, .. } => *by,
            Command::Refuse | Command::System(_) => 0,
        };
        let mut next: Vec<u64> = self.turn()?.items.iter().map(by).collect();
        next.extend(lock(&self.desk.inner).queue.iter().map(by));
        Some(next)
    }

    fn answered(&mut self) -> Vec<Option<Result<u64, &'static str>>> {
        let word = |reply: Reply<Counter>| match reply {
            Ok(Done::Answer(answer)) => Ok(answer.checkpoint.seq.0),
            Ok(Done::Before(_)) => Err("before"),
            Err(error) => Err(error.code()),
        };
        self.callers.iter_mut().map(|caller| caller.try_recv().ok().map(word)).collect()
    }

    fn tick(&self) {
        self.desk.tick(&Arc::new(Head { seq: Seq(1), ..Head::default() }), false);
    }
}

#[test]
fn answers_come_when_the_entry_lands_and_no_more_than_so_many_are_in_flight() {
    let mut case = Case::new(2);
    case.push(1);
    let (first, _) = case.fly();
    case.push(2);
    assert!(case.turn().is_none(), "too few to be worth an entry beside the one in flight");
    case.push(3);
    let (second, _) = case.fly();
    case.push(4);
    case.push(5);
    assert!(case.turn().is_none(), "two are in flight");
    assert!(case.desk.land(&second).is_none(), "not the front");
    assert_eq!(case.answered(), [None, None, None, None, None]);
    case.land(&first);
    assert_eq!(case.answered(), [Some(Ok(2)), None, None, None, None]);
    case.callers.remove(0);
    case.land(&second);
    assert_eq!(case.answered(), [Some(Ok(3)), Some(Ok(4)), None, None]);
    assert_eq!(case.next(), Some(vec![4, 5]));
}

#[test]
fn what_an_entry_of_a_later_term_has_overtaken_is_decided_again_first() {
    let mut case = Case::new(1);
    case.push(1);
    let _ = case.fly();
    case.push(2);
    let _ = case.fly();
    case.push(3);
    case.desk.led(false, None, 9);
    assert!(case.turn().is_none(), "no term is open");
    case.open(2);
    assert_eq!(case.next(), Some(vec![1, 2, 3]));
    assert_eq!(case.answered(), [None, None, None]);
}

#[test]
fn what_was_skipped_or_refused_is_decided_again_in_order() {
    for refused in [false, true] {
        let mut case = Case::new(1);
        case.push(1);
        let (first, serial) = case.fly();
        case.push(2);
        let (second, _) = case.fly();
        case.push(3);
        if refused {
            case.desk.refused(serial, 0, true);
            case.tick();
        } else {
            case.desk.skipped(case.desk.land(&first).unwrap());
        }
        assert!(case.turn().is_none(), "what was decided after it is still in flight");
        case.desk.skipped(case.desk.land(&second).unwrap());
        assert!(case.turn().is_none());
        case.tick();
        assert_eq!(case.next(), Some(vec![1, 2, 3]), "refused: {refused}");
    }
}

#[test]
fn a_turn_whose_term_was_closed_meanwhile_is_taken_again() {
    let mut case = Case::new(1);
    case.push(1);
    case.push(2);
    let turn = case.turn().unwrap();
    case.push(3);
    case.open(2);
    let term = turn.term;
    let batch = crate::sequencer::decide(turn, &case.desk.limits);
    assert!(case.desk.quiet(term, batch.head, batch.rest, batch.decided).is_none());
    assert_eq!(case.next(), Some(vec![1, 2, 3]));
}

/// Decides what waits without an entry.
#[test]
fn what_is_out_when_the_member_stops_is_answered() {
    let mut case = Case::new(8);
    case.push(1);
    let waiting = quiet(&case);
    case.push(2);
    let launched = case.turn().unwrap();
    case.desk.stop();
    case.desk.confirmed(waiting, true);
    let (term, batch) = (launched.term, crate::sequencer::decide(launched, &case.desk.limits));
    assert!(case.desk.quiet(term, batch.head, batch.rest, batch.decided).is_none());
    assert_eq!(case.answered(), [Some(Err("stopped")), Some(Err("stopped"))]);

    let mut case = Case::new(8);
    case.push(3);
    let turn = case.turn().unwrap();
    case.desk.stop();
    assert!(case.launch(turn).is_none());
    assert_eq!(case.answered(), [Some(Err("stopped"))]);
}

fn quiet(case: &Case) -> Quiet<Counter, Rt> {
    let turn = case.turn().unwrap();
    let nothing = |item| (item, Verdict::Nothing(Checkpoint { epoch: Epoch::default(), seq: Seq(2) }));
    let decided = turn.items.into_iter().map(nothing).collect();
    case.desk.quiet(turn.term, turn.head, VecDeque::new(), decided).unwrap()
}

#[test]
fn what_changes_nothing_is_answered_once_this_member_is_known_to_lead_and_what_it_was_decided_after_is_applied() {
    let mut case = Case::new(1);
    case.push(1);
    let (first, _) = case.fly();
    case.push(2);
    let waiting = quiet(&case);
    assert_eq!(case.answered(), [None, None]);
    case.desk.confirmed(waiting, true);
    assert_eq!(case.answered(), [None, None], "what it was decided after is in flight");
    case.push(3);
    let later = quiet(&case);
    case.land(&first);
    assert_eq!(case.answered(), [Some(Ok(2)), Some(Ok(2)), None]);
    case.callers.drain(..2);
    case.desk.confirmed(later, true);
    assert_eq!(case.answered(), [Some(Ok(2))]);
}

#[test]
fn what_changes_nothing_is_decided_again_where_this_member_may_not_have_led() {
    for led in [false, true] {
        let mut case = Case::new(1);
        case.push(1);
        let waiting = quiet(&case);
        if led {
            // It leads again, in another term: the head that it was decided against is not this one's.
            case.open(2);
        }
        case.desk.confirmed(waiting, led);
        assert_eq!(case.answered(), [None]);
        assert_eq!(case.next(), Some(vec![1]));
    }
}

fn to_forward(case: &Case, most: usize) -> Vec<Item<Counter, Rt>> {
    match case.desk.poll_forward(&mut Context::from_waker(std::task::Waker::noop()), most) {
        Poll::Ready(items) => items.unwrap(),
        Poll::Pending => Vec::new(),
    }
}

#[test]
fn what_waits_where_another_member_leads_is_forwarded_and_what_is_in_flight_only_once_it_is_lost() {
    let mut case = Case::new(1);
    case.push(1);
    let _ = case.fly();
    case.push(2);
    case.push(3);
    assert!(to_forward(&case, 9).is_empty(), "this member leads");
    case.desk.led(false, Some(2), 2);
    let mut away = to_forward(&case, 1);
    assert_eq!((away.len(), case.desk.load().0), (1, 2), "it still counts");
    case.desk.overtaken(LeaderId { term: 2, node_id: 2 });
    assert_eq!(to_forward(&case, 9).len(), 2);
    case.open(3);
    case.desk.back(away.pop().unwrap());
    assert_eq!(case.next(), Some(vec![2]));
}

#[test]
fn an_entry_that_is_in_flight_for_too_long_leaves_its_callers_in_doubt() {
    let mut case = Case::new(1);
    case.push(1);
    let (first, _) = case.fly();
    let length = first.0.len() as u64;
    case.hands.0.store(2_000_000 + length, Relaxed);
    case.tick();
    assert_eq!(case.answered(), [None], "a link may take a microsecond a byte");
    case.hands.0.store(2_000_001 + length, Relaxed);
    case.desk.tick(&Arc::default(), true);
    assert_eq!(case.answered(), [None], "nobody else votes: it waits for the disk");
    case.tick();
    assert_eq!(case.answered(), [Some(Err("outcome_unknown"))]);
    assert!(case.desk.land(&first).is_some_and(|flight| flight.decided.is_empty()));
}

#[test]
fn what_waited_long_to_be_proposed_is_in_doubt_no_sooner_for_it() {
    let mut case = Case::new(1);
    case.push(1);
    case.hands.0.store(1_900_000, Relaxed);
    let (first, _) = case.fly();
    case.hands.0.store(3_900_000 + first.0.len() as u64, Relaxed);
    case.tick();
    assert_eq!(case.answered(), [None]);
    case.hands.0.fetch_add(1, Relaxed);
    case.tick();
    assert_eq!(case.answered(), [Some(Err("outcome_unknown"))]);
}

#[test]
fn what_waits_behind_an_entry_that_no_majority_has_is_answered() {
    let mut case = Case::new(8);
    case.push(1);
    let (first, _) = case.fly();
    case.push(2);
    case.hands.0.store(2_000_001 + first.0.len() as u64, Relaxed);
    case.push(3);
    case.desk.tick(&Arc::default(), true);
    assert_eq!(case.answered(), [None, None, None], "nobody else votes: all wait for the disk");
    case.tick();
    assert_eq!(case.answered(), [Some(Err("outcome_unknown")), Some(Err("no_leader")), None]);
    case.callers.drain(..2);
    // The majority is there again.
    assert!(case.desk.land(&first).is_some_and(|flight| flight.decided.is_empty()));
    assert_eq!(case.next(), Some(vec![3]));
}

#[test]
fn one_that_is_applied_behind_one_that_was_refused_is_found() {
    let mut case = Case::new(1);
    for by in 1..=3 {
        case.push(by);
    }
    let ((_, serial), (second, _)) = (case.fly(), case.fly());
    case.desk.refused(serial, 0, true);
    let flight = case.desk.land(&second).expect("it is in the log");
    case.desk.skipped(flight);
    case.tick();
    assert_eq!(case.next(), Some(vec![1, 2, 3]));
}

#[test]
fn where_a_snapshot_takes_the_place_of_entries_only_a_number_can_tell() {
    let mut case = Case::new(1);
    case.push(1);
    let _ = case.fly();
    let (tx, rx) = Cfg::<Rt>::oneshot();
    case.desk.push(Box::new(Command::add_once(2, 7, 1)), None, tx).unwrap();
    case.callers.push(rx);
    let _ = case.fly();
    case.desk.jumped();
    assert_eq!(case.answered(), [Some(Err("outcome_unknown")), None]);
    case.open(2);
    assert_eq!(case.next(), Some(vec![2]));
}

#[test]
fn without_a_leader_a_command_waits_so_long_and_a_stop_answers_all() {
    let mut case = Case::new(1);
    case.desk.led(false, None, 9);
    case.push(1);
    case.tick();
    assert_eq!(case.answered(), [None]);
    case.hands.0.store(2_000_001, Relaxed);
    case.push(2);
    case.tick();
    assert_eq!(case.answered(), [Some(Err("no_leader")), None]);
    case.callers.remove(0);
    case.desk.stop();
    assert_eq!(case.answered(), [Some(Err("stopped"))]);
    let (tx, _) = Cfg::<Rt>::oneshot();
    assert_eq!(case.desk.push(Box::new(Command::add(1)), None, tx), Err(WriteError::Stopped));
}
