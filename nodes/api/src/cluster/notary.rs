//! Signed tree heads: each member has a key for them, and those that vote sign what their own log comes to.
//!
//! ```text
//!  size ─► root from the own tree ─► note, signed with keys/note.key ─► the other voters' signatures ─► majority? ─► notes/
//! ```
//! A voter that is asked over `cvlan-voter/1` signs what it has applied itself, never what it is told. The keys' public halves
//! are in the log (`MemberJoined.note_key`). Notes are C2SP `tlog-checkpoint`, and can be made again at any size.

use super::ask::Voters;
use crate::Log;
use crate::keys::{Keys, KeysError, file_write};
use crate::problem::Problem;
use crate::random::bytes;
use cvlan_core::State;
use cvlan_core::id::{Epoch, MemberId, Seq};
use cvlan_core::log::export::{origin, signer};
use cvlan_core::log::note::{Note, TreeHead, Verifier};
use cvlan_proto::v1::{LogKey, LogKeyList, TreeHeadRequest};
use cvlan_raft::Head;
use ed25519_dalek::SigningKey;
use http::StatusCode;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

/// Notes that are kept: of the newest checkpoints. Older ones can be made again while voters have the tree.
const KEPT: usize = 1_024;
/// Tree heads for which the others are asked at once, and those that others ask for.
const COLLECTING: usize = 16;
const ANSWERING: usize = 16;
/// A voter that has not applied what it is to sign within this does not sign.
const APPLY_TIME: Duration = Duration::from_secs(2);
/// Between two looks whether it has, and whether there is a new checkpoint.
const LOOK: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_secs(5);

/// What a member signs with, and where it keeps what was signed.
pub struct Notary {
    key: SigningKey,
    member: u64,
    log: Log,
    folder: PathBuf,
    collecting: Semaphore,
    answering: Semaphore,
}

/// A tree head with all signatures that could be had.
pub struct Signed {
    /// As text to keep.
    pub note: Note,
    /// Who of the voters signed.
    pub signers: Vec<String>,
    /// Voters that there are.
    pub voters: usize,
    /// More than half of them did.
    pub valid: bool,
}

impl Notary {
    /// Of the member whose folder it is; makes its key where it has none.
    pub fn open(keys: &Keys, data: &Path, log: Log) -> Result<Arc<Self>, KeysError> {
        let seed = match keys.note_key()? {
            Some(seed) => seed,
            None => {
                let seed = bytes();
                keys.note_key_write(&seed)?;
                seed
            }
        };
        let (key, member) = (SigningKey::from_bytes(&seed), log.status().member);
        let (collecting, answering) = (Semaphore::new(COLLECTING), Semaphore::new(ANSWERING));
        Ok(Arc::new(Self { key, member, log, folder: data.join("notes"), collecting, answering }))
    }

    /// What others know it by.
    pub fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The tree head at `size`, from this member's own log, not signed.
    async fn head(&self, size: Seq) -> Result<TreeHead, Problem> {
        let end = Instant::now() + APPLY_TIME;
        while self.log.head().seq < size {
            if Instant::now() >= end {
                let detail = format!("event {size} is not applied here yet; try again");
                return Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "behind", detail, 1));
            }
            sleep(LOOK).await;
        }
        if self.log.status().diverged.is_some() {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "diverged", super::keeper::DIVERGED));
        }
        let root = self.log.prove(size, None, None).await?.root;
        Ok(TreeHead { origin: origin(self.log.head().epoch), size: size.0, root })
    }

    /// This member's own note; signed where it votes.
    pub async fn sign(&self, size: Seq) -> Result<Note, Problem> {
        let head = self.head(size).await?;
        let mut note = Note::new(head.text());
        if self.log.votes() {
            note.sign(&signer(self.log.head().epoch, self.member), &self.key);
        }
        Ok(note)
    }

    /// Answers another member.
    pub async fn answer(&self, asked: &TreeHeadRequest) -> Result<Note, Problem> {
        let epoch = self.log.head().epoch;
        if !self.log.votes() || asked.epoch != epoch.to_string() {
            let detail = "this member does not vote in that log; its signature would not count";
            return Err(Problem::new(StatusCode::CONFLICT, "not_a_voter", detail));
        }
        let busy = || Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many ask for signatures", 1);
        let _turn = self.answering.try_acquire().map_err(|_| busy())?;
        self.sign(Seq(asked.size)).await
    }

    /// Whoever asks for something of the tree has one of a few turns.
    pub fn turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        let busy = || Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many ask for proofs; try again", 1);
        self.collecting.try_acquire().map_err(|_| busy())
    }

    /// The tree head at `size`, which is applied here, with as many voters' signatures as can be had.
    pub async fn collect(&self, others: &Voters, size: Seq) -> Result<Signed, Problem> {
        let _turn = self.turn()?;
        let head = self.log.head();
        let known = verifiers(&head);
        if let Some(note) = self.kept(size).await {
            let signed = signed(note, &known, &head);
            if signed.valid {
                return Ok(signed);
            }
        }
        let mut note = self.sign(size).await?;
        let asked = TreeHeadRequest { epoch: head.epoch.to_string(), size: size.0 };
        if let Some(kept) = self.kept(size).await {
            note.merge(&kept);
        }
        for (member, theirs) in others.tree_heads(asked).await {
            match theirs {
                // Its own signature, and what else it brings is no business of its.
                Ok(theirs) if theirs.text() == note.text() => {
                    let key = key(&head.machine, head.epoch, member);
                    match key.and_then(|key| theirs.only(&key)) {
                        Some(own) => note.merge(&own),
                        None => tracing::warn!(member, "it did not sign with the key that the log has of it"),
                    }
                }
                Ok(theirs) => {
                    let (theirs, ours) = (theirs.text().to_owned(), note.text().to_owned());
                    tracing::error!(
                        member,
                        theirs,
                        ours,
                        "another voter's log comes to another root: one of them is wrong"
                    );
                }
                Err(why) => tracing::info!(member, %size, why, "it did not sign the tree head"),
            }
        }
        let signed = signed(note, &known, &head);
        if signed.valid && head.machine.system.checkpoints.iter().any(|c| c.seq == size.0) {
            self.keep(size, &signed.note).await;
        }
        Ok(signed)
    }

    fn file(size: Seq) -> String {
        format!("{:020}.note", size.0)
    }

    /// What was signed at this size by a majority, if it is kept.
    pub async fn kept(&self, size: Seq) -> Option<Note> {
        let path = self.folder.join(Self::file(size));
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        Note::parse(&read.ok()?.ok()?).ok()
    }

    /// A note that is not kept is no loss: it can be made again.
    async fn keep(&self, size: Seq, note: &Note) {
        let (folder, name, text) = (self.folder.clone(), Self::file(size), note.to_string());
        let write = move || -> std::io::Result<()> {
            std::fs::create_dir_all(&folder)?;
            file_write(&folder, &name, text.as_bytes(), 0o644)?;
            let mut all: Vec<PathBuf> =
                std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
            all.sort();
            let old = all.len().saturating_sub(KEPT);
            all.iter().take(old).try_for_each(std::fs::remove_file)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            failed => tracing::warn!(?failed, "a note was not kept"),
        }
    }
}

/// Whoever votes and did not say with which key counts too, against it.
fn signed(note: Note, known: &[Verifier], head: &Head<State>) -> Signed {
    let names = note.signers(known).unwrap_or_default();
    let signers: Vec<String> = names.iter().map(|v| v.name().to_owned()).collect();
    // While voters change there are two sets of them, and both must.
    let signed = |id: &&u64| signers.contains(&signer(head.epoch, **id));
    let sets = &head.members.voters;
    let valid = !sets.is_empty() && sets.iter().all(|set| set.iter().filter(signed).count() * 2 > set.len());
    Signed { valid, voters: voters(head).len(), note, signers }
}

fn voters(head: &Head<State>) -> BTreeSet<u64> {
    head.members.voters.iter().flatten().copied().collect()
}

/// Key of a member that said which it has.
fn key(state: &State, epoch: Epoch, id: u64) -> Option<Verifier> {
    let key = state.members.get(&MemberId(id))?.joined.as_ref()?.note_key?;
    Verifier::new(&signer(epoch, id), &key)
}

/// Those of the voters.
fn verifiers(head: &Head<State>) -> Vec<Verifier> {
    voters(head).into_iter().filter_map(|id| key(&head.machine, head.epoch, id)).collect()
}

/// Everybody's; their names for whom the cluster is no secret.
pub fn keys(head: &Head<State>, named: bool) -> LogKeyList {
    let voters = voters(head);
    let items = head.machine.members.values().filter_map(|member| {
        let verifier = key(&head.machine, head.epoch, member.id.0)?.to_string();
        let member_name = if named { member.name.to_string() } else { String::new() };
        let voter = voters.contains(&member.id.0);
        Some(LogKey { member_id: member.id.0, member_name, voter, verifier })
    });
    LogKeyList { origin: origin(head.epoch), items: items.collect() }
}

/// Has the newest attested checkpoint signed, where this member votes. It also keeps the tree close to the log.
pub async fn keep(notary: Arc<Notary>, others: Arc<Voters>) {
    let mut done = 0;
    loop {
        sleep(TICK).await;
        let head = notary.log.head();
        let newest = head.machine.system.checkpoints.last().map_or(0, |c| c.seq);
        if newest <= done || !notary.log.votes() || head.seq.0 < newest {
            continue;
        }
        match notary.collect(&others, Seq(newest)).await {
            // With the others' signatures the next time, or at the next checkpoint.
            Ok(signed) if !signed.valid => tracing::info!(newest, "no majority has signed this checkpoint yet"),
            Ok(_) => done = newest,
            // Its tree begins behind that checkpoint: with the next one, then.
            Err(problem) if problem.code == "history_gone" => done = newest,
            Err(problem) => {
                tracing::warn!(newest, code = problem.code, detail = %problem.detail, "a checkpoint was not signed");
            }
        }
    }
}
