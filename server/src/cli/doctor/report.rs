//! What was looked at and what was found, for people and for programs.

use serde_json::{Value, json};

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// In order.
    Ok,
    /// A server works, and not as well as it could.
    Warn,
    /// A server does not start, or does not do what its settings ask.
    Fail,
}

impl Level {
    /// As it is printed.
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    /// What.
    pub(super) name: String,
    /// How it is.
    pub(super) level: Level,
    /// What was found.
    pub(super) found: String,
    /// What to do; empty where nothing is.
    pub(super) advice: String,
}

impl Check {
    /// Something in order.
    pub(super) fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, Level::Ok, found, "")
    }

    /// Something that could be better.
    pub(super) fn warn(
        name: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(name, Level::Warn, found, advice)
    }

    /// Something that must change.
    pub(super) fn fail(
        name: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(name, Level::Fail, found, advice)
    }

    fn new(
        name: impl Into<String>,
        level: Level,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), level, found: found.into(), advice: advice.into() }
    }
}

/// A line for each check, what to do below it, and the sum.
pub(super) fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (level, name) = (check.level.name(), &check.name);
        // What was found may have lines of its own, as an error of a parser does.
        let found = check.found.replace('\n', &format!("\n      {:width$}  ", ""));
        text += &format!("{level:<4}  {name:<width$}  {found}\n");
        if !check.advice.is_empty() {
            text += &format!("      {:width$}  -> {}\n", "", check.advice);
        }
    }
    let (warnings, failures) = (count(checks, Level::Warn), count(checks, Level::Fail));
    text += &format!("\n{} checks; warnings: {warnings}, failures: {failures}\n", checks.len());
    text
}

/// The checks for programs.
pub(super) fn json(checks: &[Check]) -> Value {
    let one = |check: &Check| {
        json!({
            "name": check.name,
            "level": check.level.name(),
            "found": check.found,
            "advice": check.advice,
        })
    };
    json!({
        "checks": checks.iter().map(one).collect::<Vec<_>>(),
        "warnings": count(checks, Level::Warn),
        "failures": count(checks, Level::Fail),
    })
}

fn count(checks: &[Check], level: Level) -> usize {
    checks.iter().filter(|check| check.level == level).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_was_found() {
        let checks = [
            Check::ok("a", "fine"),
            Check::warn("longer", "slow", "buy another"),
            Check::fail("b", "gone\nfor good", "look for it"),
        ];
        let expected = "\
ok    a       fine
warn  longer  slow
              -> buy another
fail  b       gone
              for good
              -> look for it

3 checks; warnings: 1, failures: 1
";
        assert_eq!(text(&checks), expected);
        let json = json(&checks);
        assert_eq!((json["warnings"].as_u64(), json["failures"].as_u64()), (Some(1), Some(1)));
        assert_eq!(json["checks"][2]["level"], "fail");
    }
}
