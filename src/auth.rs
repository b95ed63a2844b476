//! Who may execute a delivery: the token check. The sender sends the first token; the receiver takes
//! any of them, so that tokens can be rotated.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::{Error, Result};

/// Sent with each delivery and verified before its body is read.
pub const TOKEN_HEADER: &str = "x-workflow-secret";

/// The seed's default. Good for a laptop; refused in production.
pub const DEFAULT_TOKEN: &str = "secret";

#[derive(Clone)]
pub struct Tokens(Vec<String>);

impl Tokens {
    /// Parses comma-separated tokens; `None` means the default.
    pub fn parse(tokens: Option<&str>) -> Result<Self> {
        let list: Vec<String> = tokens
            .unwrap_or(DEFAULT_TOKEN)
            .split(',')
            .map(str::trim)
            .filter(|token| !token.is_empty())
            .map(str::to_owned)
            .collect();
        if list.iter().any(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Configuration(
                "The security token (WORKFLOW_POSTGRES_SECURITY_TOKEN or securityToken) may hold visible ASCII characters only"
                    .to_owned(),
            ));
        }
        Ok(Self(if list.is_empty() { vec![DEFAULT_TOKEN.to_owned()] } else { list }))
    }

    pub fn first(&self) -> &str {
        &self.0[0]
    }

    pub fn has_default(&self) -> bool {
        self.0.iter().any(|token| token == DEFAULT_TOKEN)
    }

    /// Constant-time in the content and the length of both sides: digests are compared, all of them.
    pub fn accept(&self, offered: &str) -> bool {
        let offered = Sha256::digest(offered.as_bytes());
        let matched = self.0.iter().fold(Choice::from(0), |matched, token| {
            matched | Sha256::digest(token.as_bytes()).as_slice().ct_eq(offered.as_slice())
        });
        matched.into()
    }
}

/// In production nobody may run with the token that everybody knows.
pub fn check_production(tokens: &Tokens, production: bool) -> Result<()> {
    if production && tokens.has_default() {
        return Err(Error::Configuration(
            "WORKFLOW_POSTGRES_SECURITY_TOKEN is not set (or is the default \"secret\"): in production anybody who \
             reaches this app could execute workflow steps. Set it to a long random value, the same one for all \
             processes, or pass securityToken."
                .to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_are_accepted_and_each_of_them() {
        let tokens = Tokens::parse(Some("new-token, old-token")).unwrap();
        assert_eq!(tokens.first(), "new-token");
        assert!(tokens.accept("new-token") && tokens.accept("old-token"));
        for wrong in ["", "new-toke", "new-token ", "new-token, old-token", "secret"] {
            assert!(!tokens.accept(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_default_token_is_refused_in_production_only() {
        let default = Tokens::parse(None).unwrap();
        assert!(check_production(&default, false).is_ok());
        assert!(check_production(&default, true).is_err());
        assert!(check_production(&Tokens::parse(Some("secret,strong")).unwrap(), true).is_err());
        assert!(check_production(&Tokens::parse(Some("strong")).unwrap(), true).is_ok());
    }

    #[test]
    fn a_token_that_cannot_be_a_header_is_refused() {
        assert!(Tokens::parse(Some("a\nb")).is_err());
        assert!(Tokens::parse(Some("pässword")).is_err());
    }
}
