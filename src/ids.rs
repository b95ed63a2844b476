//! Ids: what they look like and what they tell.
//!
//! An event id is never stored. It is a ULID whose time is the event's and whose random part holds
//! the slot and a hash of the run id: it sorts as the slot does, decodes back to it, and cannot be
//! mistaken for an event of another run. The SDK reads its time as the replay's snapshot (412 guard).

use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::error::{Error, Result};

const EVENT_PREFIX: &str = "evnt_";
const RUN_PREFIX: &str = "wrun_";
const HASH_BITS: u32 = 48;
/// An index entry must hold it.
const LONGEST_ID: usize = 2000;

/// The sources of `validateUlidTimestamp` in @workflow/world: a day back, five minutes ahead.
const RUN_ID_MAX_AGE_MS: i64 = 24 * 60 * 60 * 1000;
const RUN_ID_MAX_AHEAD_MS: i64 = 5 * 60 * 1000;

pub fn new_run_id() -> String {
    format!("{RUN_PREFIX}{}", Ulid::new())
}

pub fn new_message_id() -> String {
    format!("msg_{}", Ulid::new())
}

/// 26 digits hold two bits more than a ULID has: `Ulid::from_string` drops them, and takes one for another.
fn parse_ulid(text: &str) -> Option<Ulid> {
    let ulid = Ulid::from_string(text).ok()?;
    text.starts_with(|first: char| ('0'..='7').contains(&first)).then_some(ulid)
}

/// The number of one call that writes: by it a repetition of the call is recognised. JavaScript reads it
/// exactly, too.
pub fn new_request_id() -> i64 {
    rand::random_range(0..1 << 53)
}

fn run_hash(run_id: &str) -> u128 {
    let digest = Sha256::digest(run_id.as_bytes());
    digest.iter().take(HASH_BITS as usize / 8).fold(0, |hash, byte| (hash << 8) | u128::from(*byte))
}

/// Builds event ids of one run; the hash is computed once for a whole log.
pub struct EventIds {
    hash: u128,
}

impl EventIds {
    pub fn of(run_id: &str) -> Self {
        Self { hash: run_hash(run_id) }
    }

    pub fn encode(&self, slot: i32, created_at_ms: i64) -> String {
        let random = (u128::from(slot.unsigned_abs()) << HASH_BITS) | self.hash;
        format!("{EVENT_PREFIX}{}", Ulid::from_parts(created_at_ms.unsigned_abs(), random))
    }

    /// The slot, or `None` where the id is not one of this run's.
    pub fn decode(&self, event_id: &str) -> Option<i32> {
        let ulid = parse_ulid(event_id.strip_prefix(EVENT_PREFIX)?)?;
        let random = ulid.random();
        let slot = i32::try_from(random >> HASH_BITS).ok()?;
        (random & ((1 << HASH_BITS) - 1) == self.hash && slot > 0).then_some(slot)
    }
}

/// The time of the ULID after the last `_`: for a step, hook or wait id, its run's start.
pub fn ulid_time_ms(id: &str) -> Option<i64> {
    let ulid = parse_ulid(id.rsplit('_').next()?)?;
    i64::try_from(ulid.timestamp_ms()).ok()
}

/// Ids end up in text columns and in SQL comparisons: no NUL, no novels.
pub fn check_id<'a>(what: &str, id: &'a str) -> Result<&'a str> {
    if id.is_empty() || id.len() > LONGEST_ID || id.contains('\0') {
        return Err(Error::Invalid(format!(
            "{what} must be a string of 1 to {LONGEST_ID} bytes without NUL characters"
        )));
    }
    Ok(id)
}

/// A hook's token: its digest is indexed, so that it may be of any length.
pub fn check_token(token: &str) -> Result<()> {
    if token.contains('\0') {
        return Err(Error::Invalid("a hook's token must not hold NUL characters".to_owned()));
    }
    Ok(())
}

/// Whether anything stored could have this id.
pub fn can_exist(id: &str) -> bool {
    check_id("id", id).is_ok()
}

/// A run id that a client chose must be a ULID of about now (@workflow/world, `validateUlidTimestamp`).
pub fn check_new_run_id(run_id: &str, now_ms: i64) -> Result<()> {
    check_id("runId", run_id)?;
    let time = parse_ulid(run_id.strip_prefix(RUN_PREFIX).unwrap_or(run_id))
        .ok_or_else(|| Error::Invalid(format!("Invalid runId: \"{run_id}\" is not a valid ULID")))?
        .timestamp_ms();
    let age = now_ms - i64::try_from(time).unwrap_or(i64::MAX);
    if age > RUN_ID_MAX_AGE_MS || -age > RUN_ID_MAX_AHEAD_MS {
        return Err(Error::Invalid(format!(
            "Invalid runId timestamp: \"{run_id}\" was made {} s {}; at most {} s are accepted",
            age.abs() / 1000,
            if age > 0 { "ago" } else { "in the future" },
            if age > 0 { RUN_ID_MAX_AGE_MS } else { RUN_ID_MAX_AHEAD_MS } / 1000,
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_sort_as_their_slots_and_decode_to_them() {
        let ids = EventIds::of("wrun_01K");
        let encoded: Vec<String> = [(1, 1000), (2, 1000), (3, 1001), (i32::MAX, 1001)]
            .into_iter()
            .map(|(slot, at)| ids.encode(slot, at))
            .collect();
        assert!(encoded.is_sorted());
        assert_eq!(
            encoded.iter().map(|id| ids.decode(id)).collect::<Vec<_>>(),
            [Some(1), Some(2), Some(3), Some(i32::MAX)]
        );
        assert_eq!(ulid_time_ms(&encoded[2]), Some(1001));
    }

    #[test]
    fn event_ids_of_another_run_or_of_no_run_do_not_decode() {
        let id = EventIds::of("wrun_a").encode(7, 1000);
        assert_eq!(EventIds::of("wrun_b").decode(&id), None);
        for garbage in ["", "evnt_", "evnt_x", "7", "evnt_01ARZ3NDEKTSV4RRFFQ69G5FAV"] {
            assert_eq!(EventIds::of("wrun_a").decode(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_new_run_id_must_be_a_ulid_of_about_now() {
        let now = 1_700_000_000_000;
        let at = |ms: i64| format!("wrun_{}", Ulid::from_parts(ms as u64, 1));
        assert!(check_new_run_id(&at(now), now).is_ok());
        assert!(check_new_run_id(&at(now - RUN_ID_MAX_AGE_MS), now).is_ok());
        assert!(check_new_run_id(&at(now - RUN_ID_MAX_AGE_MS - 1), now).is_err());
        assert!(check_new_run_id(&at(now + RUN_ID_MAX_AHEAD_MS + 1), now).is_err());
        assert!(check_new_run_id("wrun_nonsense", now).is_err());
        let too_large = at(now).replacen("wrun_0", "wrun_8", 1);
        assert!(check_new_run_id(&too_large, now).is_err(), "{too_large}");
        assert!(check_new_run_id("wrun_\0", now).is_err());
    }
}
