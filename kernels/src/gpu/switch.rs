//! Choices between two ways of running kernels, which environment variables make: they are for whoever
//! measures or looks for a mistake, and no settings of a server.

use std::env::{self, VarError};

/// What a variable chooses: yes for `1`, no for `0` or nothing.
///
/// # Errors
/// Any other value, which means nothing.
pub(super) fn chosen(variable: &str) -> Result<bool, String> {
    choice(variable, env::var(variable))
}

fn choice(variable: &str, value: Result<String, VarError>) -> Result<bool, String> {
    match value.as_deref() {
        Err(VarError::NotPresent) | Ok("0") => Ok(false),
        Ok("1") => Ok(true),
        Ok(value) => Err(format!("{variable}: expected 0 or 1, found `{value}`")),
        Err(error) => Err(format!("{variable}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_yes_zero_and_nothing_are_no_and_all_else_is_refused() {
        let of = |value: &str| choice("SCONCE_IT", Ok(value.to_owned()));
        assert_eq!(choice("SCONCE_IT", Err(VarError::NotPresent)), Ok(false));
        assert_eq!((of("0"), of("1")), (Ok(false), Ok(true)));
        for odd in ["", "yes", "01", "1 "] {
            let what = format!("SCONCE_IT: expected 0 or 1, found `{odd}`");
            assert_eq!(of(odd), Err(what));
        }
        let foreign = choice("SCONCE_IT", Err(VarError::NotUnicode("\u{1}".into())));
        assert!(foreign.unwrap_err().starts_with("SCONCE_IT: "));
    }
}
