//! Who a request comes from, and which part of the prefix cache is theirs.

use std::sync::Arc;

/// What an identity may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Asks models, and keeps state of its own.
    #[default]
    Inference,
    /// Also changes what the server has loaded, and moves snapshots in and out.
    Admin,
}

/// Who asks; in the extensions of every request that was let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    name: Option<Arc<str>>,
    namespace: Namespace,
}

impl Caller {
    /// Someone whose name is not asked for.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The identity `name`, with a part of the cache of its own unless all share it.
    pub fn known(name: Arc<str>, shares_cache: bool) -> Self {
        let owner = (!shares_cache).then(|| name.clone());
        Self { name: Some(name), namespace: Namespace { owner } }
    }

    /// Who sent the request of these extensions.
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// The identity, if there is one.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// The part of the cache that the caller sees.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// Begins the salts that no request can ask for by itself.
const MARK: char = '\u{1}';

/// A part of the prefix cache that no other identity can reach. The engine separates state by salt
/// alone; a namespace turns the salts of its requests into salts that only it can make.
///
/// The salt `s` of identity `n` becomes `MARK n MARK s`, and so does no salt of `n`, with an empty `s`.
/// Those without an identity keep theirs, as `n` empty where it begins with the mark. Names have no
/// mark and salts are not empty, so that no two become one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `None` for what those without an identity share.
    owner: Option<Arc<str>>,
}

impl Namespace {
    /// The engine's salt for one that a request asks for.
    pub fn salt(&self, asked: Option<&str>) -> Option<String> {
        match (&self.owner, asked) {
            (Some(owner), asked) => {
                Some(format!("{MARK}{owner}{MARK}{}", asked.unwrap_or_default()))
            }
            (None, Some(asked)) if asked.starts_with(MARK) => Some(format!("{MARK}{MARK}{asked}")),
            (None, asked) => asked.map(str::to_owned),
        }
    }

    /// The salt that the request asked for which became `salt`; an error if that is of another
    /// namespace.
    pub fn asked<'a>(&self, salt: Option<&'a str>) -> Result<Option<&'a str>, Foreign> {
        let (owner, asked) = match salt.and_then(|salt| salt.strip_prefix(MARK)) {
            None => ("", salt),
            Some(rest) => {
                let (owner, asked) = rest.split_once(MARK).ok_or(Foreign)?;
                (owner, Some(asked).filter(|asked| !asked.is_empty()))
            }
        };
        let own = self.owner.as_deref().unwrap_or_default() == owner;
        if own { Ok(asked) } else { Err(Foreign) }
    }

    /// Whether state under `salt` is of this namespace.
    pub fn has(&self, salt: Option<&str>) -> bool {
        self.asked(salt).is_ok()
    }

    /// Whether it is what those without an identity share.
    pub fn is_common(&self) -> bool {
        self.owner.is_none()
    }
}

/// State of another namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of(name: &str) -> Namespace {
        Caller::known(name.into(), false).namespace().clone()
    }

    #[test]
    fn no_two_namespaces_make_one_salt_and_each_knows_its_own() {
        let namespaces = [Namespace::default(), of("a"), of("b"), of("ab")];
        let asked =
            [None, Some("a"), Some("b"), Some("\u{1}a\u{1}"), Some("\u{1}"), Some("\u{1}\u{1}")];
        let mut made = HashSet::new();
        for namespace in &namespaces {
            for asked in asked {
                let salt = namespace.salt(asked);
                assert!(made.insert(salt.clone()), "{salt:?} was made twice");
                assert_eq!(namespace.asked(salt.as_deref()), Ok(asked));
                for other in namespaces.iter().filter(|other| *other != namespace) {
                    assert!(!other.has(salt.as_deref()), "{other:?} sees {salt:?}");
                }
            }
        }
    }

    #[test]
    fn without_identities_salts_are_the_requests_own() {
        let common = Caller::anonymous().namespace().clone();
        assert!(common.is_common());
        assert_eq!(common.salt(None), None);
        assert_eq!(common.salt(Some("s")).as_deref(), Some("s"));
    }

    #[test]
    fn identities_that_share_the_cache_have_names_and_no_namespaces() {
        let shared = Caller::known("a".into(), true);
        assert_eq!(shared.name().map(|name| &**name), Some("a"));
        assert!(shared.namespace().is_common());
    }

    #[test]
    fn a_salt_that_was_not_made_here_is_nobodys() {
        for namespace in [Namespace::default(), of("a")] {
            assert_eq!(namespace.asked(Some("\u{1}a")), Err(Foreign));
        }
    }
}
