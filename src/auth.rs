//! Who may execute a delivery: the token check. The sender sends the first token; the receiver takes
//! any of them, so that tokens can be rotated.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::{Error, Result};

/// Sent with each delivery and verified before its body is read.
pub const TOKEN_HEADER: &str = "x-workflow-secret";

/// The seed's default. Good for a laptop; refused elsewhere.
pub const DEFAULT_TOKEN: &str = "secret";
/// The tokens that documentation and examples show: everybody knows them.
const KNOWN_TOKENS: [&str; 4] =
    [DEFAULT_TOKEN, "your-secret-token", "your-secret-token-here", "a-token-for-development"];
/// A shorter token may be guessed.
const SHORTEST_GOOD_TOKEN: usize = 16;

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

    pub fn all(&self) -> &[String] {
        &self.0
    }

    pub fn first(&self) -> &str {
        &self.0[0]
    }

    fn has_known(&self) -> bool {
        self.0.iter().any(|token| KNOWN_TOKENS.contains(&token.as_str()))
    }

    /// A warning for the operator, which never quotes the token.
    pub fn weakness(&self) -> Option<&'static str> {
        if self.has_known() {
            Some(
                "WORKFLOW_POSTGRES_SECURITY_TOKEN (or securityToken) is not set, or is one that everybody knows: whoever \
                 reaches this app can execute workflow steps. It is accepted only while NODE_ENV is \"development\" or \"test\".",
            )
        } else if self.0.iter().any(|token| token.len() < SHORTEST_GOOD_TOKEN) {
            Some(
                "WORKFLOW_POSTGRES_SECURITY_TOKEN (or securityToken) has fewer than 16 characters and may be guessed: use a \
                 long random value, such as that of `openssl rand -hex 32`.",
            )
        } else {
            None
        }
    }

    /// A text that came from outside, such as a gateway's page about a request: it may quote the token.
    pub fn hide_in(&self, text: &str) -> String {
        let secret = self.0.iter().filter(|token| !KNOWN_TOKENS.contains(&token.as_str()));
        secret.fold(text.to_owned(), |text, token| text.replace(token.as_str(), "***"))
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

/// Fails unless the tokens are secret, or this is a machine of a developer or of tests.
pub fn check_tokens(tokens: &Tokens, development: bool) -> Result<()> {
    if !development && tokens.has_known() {
        return Err(Error::Configuration(
            "WORKFLOW_POSTGRES_SECURITY_TOKEN is not set (or is one that everybody knows, such as \"secret\"), and NODE_ENV \
             is neither \"development\" nor \"test\": anybody who reaches this app could execute workflow steps. Set it \
             to a long random value, the same one for all processes, or pass securityToken."
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
    fn a_token_that_everybody_knows_is_accepted_in_development_only() {
        for known in [None, Some(""), Some("secret"), Some("secret,strong"), Some("your-secret-token-here")] {
            let tokens = Tokens::parse(known).unwrap();
            assert!(check_tokens(&tokens, true).is_ok(), "{known:?}");
            assert!(check_tokens(&tokens, false).is_err(), "{known:?}");
            assert!(tokens.weakness().is_some_and(|weakness| weakness.contains("NODE_ENV")), "{known:?}");
        }
        assert!(check_tokens(&Tokens::parse(Some("strong")).unwrap(), false).is_ok());
    }

    #[test]
    fn a_short_token_is_a_weakness_and_a_long_one_is_not() {
        let weakness = |tokens| Tokens::parse(Some(tokens)).unwrap().weakness();
        assert!(
            weakness("a-long-enough-token,fifteen-letters")
                .is_some_and(|text| text.contains("16 characters"))
        );
        assert_eq!(weakness("sixteen-letters!"), None);
    }

    #[test]
    fn a_token_that_cannot_be_a_header_is_refused() {
        assert!(Tokens::parse(Some("a\nb")).is_err());
        assert!(Tokens::parse(Some("pässword")).is_err());
    }
}
