//! Proofs about the log, against a tree head that the voters sign; and the tree's own tiles, to make any proof from: `checkpoint`
//! and `tile/<L>/<N>` below `/api/v1/log`, as C2SP tlog-tiles has them (<https://c2sp.org/tlog-tiles>). The leaves themselves are not
//! served that way: whoever asks sees what they may see, in exports.

use super::list::Params;
use super::{App, Output};
use crate::problem::Problem;
use cvlan_core::State;
use cvlan_core::id::Seq;
use cvlan_core::log::merkle::Hash;
use cvlan_proto::v1;
use cvlan_raft::Head;

/// An event that is not there to be proven.
pub fn beyond(name: &str, asked: u64, head: Seq) -> Problem {
    Problem::invalid("seq_beyond", format!("{name} = {asked}: it is from 1 to {head}, the last event here"))
}

/// That an event is in the tree of `size` events, that this continues an older one, and who says so.
pub async fn proof(app: &App, head: &Head<State>, params: &Params) -> Result<Output<v1::LogProof>, Problem> {
    let size = params.number("size", head.seq.0)?;
    if size == 0 || size > head.seq.0 {
        return Err(beyond("size", size, head.seq));
    }
    let within = |name: &'static str| match params.get(name).map(|_| params.number(name, 0)).transpose()? {
        Some(seq) if seq == 0 || seq > size => Err(beyond(name, seq, Seq(size))),
        seq => Ok(seq.map(Seq)),
    };
    let (event, old) = (within("seq")?, within("since")?);
    let signed = app.notary.collect(&app.voters, Seq(size)).await?;
    let proof = app.log.prove(Seq(size), event, old).await?;
    let hexes = |path: Vec<Hash>| path.iter().map(hex::encode).collect();
    let mut body = v1::LogProof {
        size,
        root: hex::encode(proof.root),
        note: signed.note.to_string(),
        signers: signed.signers,
        voters: signed.voters as u32,
        ..v1::LogProof::default()
    };
    if let Some((event, inclusion)) = event.zip(proof.inclusion) {
        (body.seq, body.leaf, body.inclusion) = (event.0, hex::encode(inclusion.leaf), hexes(inclusion.path));
    }
    if let Some((old, consistency)) = old.zip(proof.consistency) {
        (body.old_size, body.old_root) = (old.0, hex::encode(consistency.root));
        body.consistency = hexes(consistency.path);
    }
    Ok(Output::read(head, body))
}

/// The hashes of a tile, 32 bytes each.
pub async fn tile(app: &App, head: &Head<State>, level: &str, tile: &str) -> Result<Output<Vec<u8>>, Problem> {
    let unknown = || {
        let detail =
            format!("the tree has no tile {level}/{tile}: 256 hashes each, as in 0/x001/234, 0/007.p/30, 1/000");
        Problem::not_found("tile_not_found", detail)
    };
    let (level, (index, width)) = level_read(level).zip(tile_read(tile)).ok_or_else(unknown)?;
    let _turn = app.notary.turn()?;
    let hashes = match app.log.tile(level, index, width).await? {
        Some(hashes) => hashes,
        // The head that it is for may have come from another member, which is ahead.
        None => {
            app.linearize().await?;
            app.log.tile(level, index, width).await?.ok_or_else(unknown)?
        }
    };
    Ok(Output::read(head, hashes.concat()))
}

/// A number as it is written, without zeros before it.
fn level_read(text: &str) -> Option<u32> {
    let plain = text == "0" || text.bytes().next().is_some_and(|first| (b'1'..=b'9').contains(&first));
    text.parse().ok().filter(|level| plain && *level < 8)
}

/// `x001/x234/567`, and `.p/W` for one that is not full: its number and how many hashes it has.
fn tile_read(text: &str) -> Option<(u64, u32)> {
    let (number, width) = match text.split_once(".p/") {
        Some((number, width)) => (number, width_read(width)?),
        None => (text, 256),
    };
    let (mut index, mut parts) = (0u64, number.split('/').peekable());
    let mut first = true;
    while let Some(part) = parts.next() {
        let digits = if parts.peek().is_some() { part.strip_prefix('x')? } else { part };
        let good = digits.len() == 3 && digits.bytes().all(|digit| digit.is_ascii_digit());
        // Numbers have one form alone.
        if !good || (first && parts.peek().is_some() && digits == "000") {
            return None;
        }
        index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        first = false;
    }
    Some((index, width))
}

fn width_read(text: &str) -> Option<u32> {
    let plain = text.bytes().next().is_some_and(|first| (b'1'..=b'9').contains(&first));
    text.parse().ok().filter(|width| plain && *width < 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_named_in_one_way() {
        for (name, is) in [
            ("000", Some((0, 256))),
            ("067", Some((67, 256))),
            ("x001/234", Some((1234, 256))),
            ("x001/x234/067.p/8", Some((1_234_067, 8))),
            ("999.p/255", Some((999, 255))),
            ("", None),
            ("0", None),
            ("x000/001", None),
            ("x001", None),
            ("001/002", None),
            ("0a1", None),
            ("000.p/0", None),
            ("000.p/256", None),
            ("000.p/08", None),
            ("000.p/", None),
            ("000.p/1.p/1", None),
            ("x999/x999/x999/x999/x999/x999/x999/999", None),
            ("entries/000", None),
        ] {
            assert_eq!(tile_read(name), is, "{name}");
        }
        assert_eq!(
            ["0", "7", "8", "00", "+1", "", "x"].map(level_read),
            [Some(0), Some(7), None, None, None, None, None]
        );
    }
}
