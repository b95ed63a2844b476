//! Who may execute a delivery of QStash: the check of its `Upstash-Signature`, a JWT that QStash signs
//! with a key of the account, over the destination and the hash of the body.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const ISSUER: &str = "Upstash";
/// Clocks differ; a signature lives for 5 minutes.
const TOLERANCE_SECONDS: i64 = 10;

#[derive(Deserialize)]
struct Claims {
    iss: String,
    /// The URL that the message was sent to.
    sub: String,
    exp: i64,
    nbf: Option<i64>,
    /// base64url of the SHA-256 of the body.
    body: String,
}

/// Why a delivery is refused. Goes into the answer, so it says nothing that helps a forger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the signature is not one of QStash")]
    Malformed,
    #[error("the signature was made with another key")]
    WrongKey,
    #[error("the signature has expired, or is not valid yet")]
    WrongTime,
    #[error("the signature is for another URL")]
    WrongUrl,
    #[error("the signature is for another body")]
    WrongBody,
}

/// A signature that is valid for its time and destination, but has not seen the body yet.
#[derive(Debug)]
pub struct Signed {
    body_hash: String,
}

/// Any of `keys` may have signed, so that they can be rotated. `is_ours`: whether a URL is one of this app.
pub fn verify(
    keys: &[String],
    token: &str,
    is_ours: impl FnOnce(&str) -> bool,
    now_seconds: i64,
) -> Result<Signed, Refusal> {
    let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
    // Pinned: neither `none` nor what the forger would like better, and no extension changes what it means.
    let header: Map<String, Value> = decode(header)?;
    if header.get("alg") != Some(&"HS256".into()) || header.contains_key("crit") {
        return Err(Refusal::Malformed);
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refusal::Malformed)?;
    if !keys.iter().any(|key| is_signed_by(key, signed.as_bytes(), &signature)) {
        return Err(Refusal::WrongKey);
    }
    let claims: Claims = decode(claims)?;
    if claims.iss != ISSUER {
        return Err(Refusal::Malformed);
    }
    let early = claims.nbf.is_some_and(|nbf| nbf > now_seconds.saturating_add(TOLERANCE_SECONDS));
    if early || claims.exp.saturating_add(TOLERANCE_SECONDS) <= now_seconds {
        return Err(Refusal::WrongTime);
    }
    if !is_ours(&claims.sub) {
        return Err(Refusal::WrongUrl);
    }
    Ok(Signed { body_hash: claims.body })
}

impl Signed {
    pub fn accept(&self, body: &[u8]) -> Result<(), Refusal> {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(body));
        let same = self.body_hash.trim_end_matches('=').as_bytes().ct_eq(hash.as_bytes());
        if same.into() { Ok(()) } else { Err(Refusal::WrongBody) }
    }
}

fn decode<T: DeserializeOwned>(part: &str) -> Result<T, Refusal> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed)?;
    // A struct could be read from a list, too.
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::Malformed);
    }
    serde_json::from_slice(&json).map_err(|_| Refusal::Malformed)
}

fn is_signed_by(key: &str, signed: &[u8], signature: &[u8]) -> bool {
    // Any length of key will do for HMAC.
    Hmac::<Sha256>::new_from_slice(key.as_bytes())
        .is_ok_and(|mac| mac.chain_update(signed).verify_slice(signature).is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const URL: &str = "https://app.example/.well-known/workflow/v1/step";
    const NOW: i64 = 1_800_000_000;

    fn encode(value: &serde_json::Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn token(key: &str, change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value)) -> String {
        let mut header = json!({"alg": "HS256", "typ": "JWT"});
        let mut claims = json!({
            "iss": "Upstash", "sub": URL, "exp": NOW + 300, "nbf": NOW, "iat": NOW, "jti": "jwt_1",
            "body": URL_SAFE_NO_PAD.encode(Sha256::digest(b"{}")),
        });
        change(&mut header, &mut claims);
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap().chain_update(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    fn keys() -> Vec<String> {
        vec!["current".to_owned(), "next".to_owned()]
    }

    fn refusal(token: &str) -> Option<Refusal> {
        verify(&keys(), token, |url| url == URL, NOW).and_then(|signed| signed.accept(b"{}")).err()
    }

    #[test]
    fn either_key_is_accepted_and_no_other() {
        assert_eq!(refusal(&token("current", |_, _| {})), None);
        assert_eq!(refusal(&token("next", |_, _| {})), None);
        assert_eq!(refusal(&token("other", |_, _| {})), Some(Refusal::WrongKey));
        assert_eq!(verify(&[], &token("", |_, _| {}), |url| url == URL, NOW).err(), Some(Refusal::WrongKey));
    }

    #[test]
    fn what_is_not_a_signature_of_qstash_is_refused() {
        let good = token("current", |_, _| {});
        let unsigned = &good[..good.rfind('.').unwrap() + 1];
        for bad in
            ["", ".", "..", "a.b", "a.b.c", "ä.ö.ü", unsigned, &format!("{good}."), &format!("x{good}")]
        {
            assert!(refusal(bad).is_some(), "{bad:?}");
        }
        for algorithm in ["none", "HS512", "hs256", ""] {
            let other = token("current", |header, _| header["alg"] = algorithm.into());
            assert_eq!(refusal(&other), Some(Refusal::Malformed), "{algorithm}");
        }
        let extended = token("current", |header, _| header["crit"] = json!(["b64"]));
        assert_eq!(refusal(&extended), Some(Refusal::Malformed));
        for claim in ["iss", "sub", "exp", "body"] {
            let without = token("current", |_, claims| {
                claims.as_object_mut().unwrap().remove(claim);
            });
            assert_eq!(refusal(&without), Some(Refusal::Malformed), "{claim}");
        }
        assert!(refusal(&token("current", |_, claims| claims["iss"] = "Someone".into())).is_some());
    }

    #[test]
    fn a_signature_is_for_one_time_one_url_and_one_body() {
        let with = |name: &str, value: serde_json::Value| {
            refusal(&token("current", |_, claims| claims[name] = value))
        };
        assert_eq!(with("exp", (NOW - TOLERANCE_SECONDS).into()), Some(Refusal::WrongTime));
        assert_eq!(with("exp", (NOW - TOLERANCE_SECONDS + 1).into()), None);
        assert_eq!(with("nbf", (NOW + TOLERANCE_SECONDS).into()), None);
        assert_eq!(with("nbf", (NOW + TOLERANCE_SECONDS + 1).into()), Some(Refusal::WrongTime));
        assert_eq!(with("sub", "https://app.example/".into()), Some(Refusal::WrongUrl));
        assert_eq!(with("body", "".into()), Some(Refusal::WrongBody));
        let padded = format!("{}=", URL_SAFE_NO_PAD.encode(Sha256::digest(b"{}")));
        assert_eq!(with("body", padded.into()), None);
    }
}
