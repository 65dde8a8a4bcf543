//! Commands and refusals of the real machine survive the way to another member, which is a format without names.

use bincode::config::standard;
use cvlan_core::grammar::{Grammar, KINDS};
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::{Context, Machine, Once, SystemFact};
use cvlan_core::{Command, Rejection, Rules, State};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;

fn travel<T: Serialize + DeserializeOwned>(what: &T) -> T {
    let bytes = bincode::serde::encode_to_vec(what, standard()).unwrap();
    let (read, length) = bincode::serde::decode_from_slice(&bytes, standard()).unwrap();
    assert_eq!(length, bytes.len());
    read
}

#[test]
fn every_command_and_every_refusal_arrives_as_it_was_sent() {
    let (mut kinds, mut refusals) = (BTreeSet::new(), 0);
    for seed in 0..20 {
        let mut grammar = Grammar::new(seed);
        let mut state = State::default();
        let mut seq = 0;
        let mut next = grammar.bootstrap();
        for n in 1..=200 {
            let mut command: Command = travel(&next);
            assert_eq!(command, next);
            let context = Context {
                epoch: Epoch([1; 16]),
                next_seq: Seq(seq + 1),
                time_ms: 1_700_000_000_000 + seq,
                level: 1,
                known_level: 1,
            };
            match Rules::decide(&state, &context, &command) {
                Ok(events) => {
                    seq += events.len() as u64;
                    events.iter().for_each(|event| Rules::apply(&mut state, event));
                }
                Err(rejection) => {
                    let arrived: Rejection = travel(&rejection);
                    assert_eq!(arrived, rejection);
                    refusals += 1;
                }
            }
            let before = Rules::once(&command);
            Rules::number(&mut command, Once { session: 9, n });
            assert_eq!(Rules::once(&command), before.or(Some(Once { session: 9, n })), "a number is kept");
            let (kind, following) = grammar.next(&state);
            kinds.insert(kind);
            next = following;
        }
    }
    assert_eq!(kinds.len(), KINDS.len(), "{kinds:?}");
    assert!(refusals > 50, "{refusals}");
    let fact = SystemFact::Checkpointed { seq: Seq(3), root: [1; 32], digest: [2; 32] };
    let command = Rules::system(fact, [4; 16]);
    assert_eq!(travel(&command), command);
}
