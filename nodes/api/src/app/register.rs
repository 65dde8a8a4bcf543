//! Machines that come with a token.
//!
//! ```text
//!  token: signed by a key of its tenant? ─► CSR: signed by its own key? ─► proof: holds the WireGuard key?
//!     ─► decide (expiry, uses, nonce, key, address) ─► node in the log ─► certificate, addresses, first map
//! ```
//! The same (token, WireGuard key, CSR key) again is the same node, issued again, not counted again: a machine that died
//! before it saved its certificate just repeats.

use super::node::wg_key;
use super::{App, now_ms};
use crate::bootstrap::purpose;
use crate::ca::Csr;
use crate::cluster::vault::Secrets;
use crate::problem::Problem;
use crate::random::uuid_sorted;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_core::access::tenant_unknown;
use cvlan_core::id::NodeId;
use cvlan_core::map::{Place, place};
use cvlan_core::node::{Machine, NodeCommand, Register};
use cvlan_core::rejection::Rejection;
use cvlan_core::state::WgKey;
use cvlan_core::sync::PART_BYTES;
use cvlan_core::token::{ParsedToken, proof_check, token_parse, token_verify};
use cvlan_core::{Actor, Meta, State, Wish};
use cvlan_proto::{Message, v1};
use cvlan_raft::Head;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use x25519_dalek::{PublicKey, StaticSecret};

/// Where a tenant's machines find the controllers, and what they prove their WireGuard key against.
pub async fn discover(app: &App, slug: &str) -> Result<v1::DiscoverResponse, Problem> {
    let head = current(app, |state| state.slugs.get(slug).map(drop).ok_or_else(tenant_unknown)).await?;
    let state = &head.machine;
    Ok(v1::DiscoverResponse {
        controllers: state.node_urls(),
        ca_fingerprint: app.ca.fingerprint(),
        challenge_key: BASE64.encode(state.system.challenge_public_key),
    })
}

/// The head, where `check` finds nothing against it. A machine that is refused does not ask again, so it is not refused on the word
/// of a member that may be behind.
async fn current(app: &App, check: impl Fn(&State) -> Result<(), Rejection>) -> Result<Arc<Head<State>>, Problem> {
    let head = app.log.head();
    if check(&head.machine).is_ok() {
        return Ok(head);
    }
    app.linearize().await?;
    let head = app.log.head();
    check(&head.machine)?;
    Ok(head)
}

/// Makes a machine a node.
pub async fn register(
    app: &App,
    body: v1::RegisterRequest,
    source: IpAddr,
    request_id: String,
) -> Result<v1::RegisterResponse, Problem> {
    let secrets = app.vault.need()?;
    let token = token_parse(&body.token)?;
    current(app, |state| token_verify(state, &token).map(drop)).await?;
    let csr = Csr::read(&body.csr)?;
    let wg_key = wg_key(&body.wg_public_key)?;
    let nonce = nonce(&body.nonce)?;
    let binding: [u8; 32] = Sha256::new().chain_update(mac(&body.mac)?).chain_update(nonce).finalize().into();
    let challenge = challenge(&app.log.head().machine, &secrets)?;
    holds_key(&challenge, &token, &wg_key, &csr, &nonce, &body.proof)?;

    let wish = NodeCommand::Register(Box::new(Register {
        id: NodeId(uuid_sorted(now_ms())),
        tenant: token.tenant(),
        token: token.token(),
        key: token.key(),
        wg_key,
        csr_key_hash: csr.key_sha256,
        nonce,
        device_binding: binding,
        machine: Machine {
            hostname: body.hostname,
            os: body.os,
            agent_version: body.agent_version,
            endpoints: body.endpoints,
        },
    }));
    let meta = Meta { actor: Actor::Token(token.token()), request_id, source: source.to_string(), ..Meta::default() };
    app.command(meta, Wish::Node(wish)).await?;

    let head = app.log.head();
    let deleted = || Problem::from(cvlan_core::map::Refusal::Deleted);
    let id = head.machine.node_by_key(&wg_key).map(|(_, n)| n.id).ok_or_else(deleted)?;
    let here = place(&head.machine, id)?;
    let from_ms = here.node.certs_valid_from_ms;
    let certificate = secrets.signer.node(id, &csr, &binding, now_ms(), from_ms).map_err(Problem::internal)?;
    let map = first_map(&head, &here);
    Ok(v1::RegisterResponse {
        node_id: id.to_string(),
        certificate,
        ca_chain: vec![app.ca.pem().to_owned()],
        addresses: here.own().addresses,
        // Without a map there is nothing that a delta could start from.
        checkpoint: map.as_ref().map(|m| m.checkpoint.clone()).unwrap_or_default(),
        map,
    })
}

fn nonce(text: &str) -> Result<[u8; 16], Problem> {
    let nonce = BASE64.decode(text).ok().and_then(|n| n.try_into().ok());
    nonce.ok_or_else(|| Problem::invalid("nonce_invalid", "a nonce is 16 random bytes, base64"))
}

/// aa:bb:cc:dd:ee:ff
fn mac(text: &str) -> Result<[u8; 6], Problem> {
    let invalid = || Problem::invalid("mac_invalid", "a hardware address is written aa:bb:cc:dd:ee:ff");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(invalid)?;
        hex::decode_to_slice(part, std::slice::from_mut(byte)).map_err(|_| invalid())?;
    }
    match parts.next() {
        None => Ok(mac),
        Some(_) => Err(invalid()),
    }
}

/// What machines prove their WireGuard key against.
fn challenge(state: &State, secrets: &Secrets) -> Result<StaticSecret, Problem> {
    let opened = secrets.cluster.open(purpose::CHALLENGE, &state.system.challenge_key).map_err(Problem::internal)?;
    let key: [u8; 32] = opened.try_into().map_err(|_| Problem::internal("the challenge key is not 32 bytes"))?;
    Ok(StaticSecret::from(key))
}

fn holds_key(
    challenge: &StaticSecret,
    token: &ParsedToken,
    wg_key: &WgKey,
    csr: &Csr,
    nonce: &[u8; 16],
    proof: &str,
) -> Result<(), Problem> {
    let shared = challenge.diffie_hellman(&PublicKey::from(*wg_key));
    let proof = BASE64.decode(proof).unwrap_or_default();
    // A key of low order gives the same secret to everybody (RFC 7748 §6.1): it proves nothing.
    let holds = shared.was_contributory()
        && proof_check(&proof, shared.as_bytes(), token.tenant(), token.token(), wg_key, &csr.sha256, nonce);
    if holds {
        return Ok(());
    }
    Err(Problem::unproven(
        "proof_invalid",
        "the proof that this machine holds its WireGuard key is missing or wrong; ask discover for the challenge key again",
    ))
}

/// The full map, where it is small enough for one part.
fn first_map(head: &Head<State>, here: &Place) -> Option<v1::Map> {
    let mut map = v1::Map { checkpoint: head.checkpoint().to_string(), self_: Some(here.own()), ..v1::Map::default() };
    let mut bytes = 0;
    for id in here.peer_ids() {
        let peer = here.peer(id)?;
        bytes += peer.encoded_len() + 4;
        if bytes > PART_BYTES {
            return None;
        }
        map.peers.push(peer);
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        assert_eq!(mac("02:00:5e:10:00:ff").unwrap(), [2, 0, 0x5e, 0x10, 0, 0xff]);
        for bad in
            ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "2:0:5e:10:0:ff", "02:00:5e:10:00:fg", "+2:00:5e:10:00:ff"]
        {
            assert_eq!(mac(bad).err().map(|p| p.code), Some("mac_invalid"), "{bad}");
        }
    }
}
