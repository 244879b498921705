//! How large the last-level cache is, as Linux tells it.

use std::path::Path;

/// Most caches that a processor is asked about.
const INDEX_MAX: usize = 16;

/// Bytes of the largest cache of the first processor; `None` where the machine does not say.
pub fn last_level_cache_bytes() -> Option<usize> {
    largest(Path::new("/sys/devices/system/cpu/cpu0/cache"))
}

fn largest(root: &Path) -> Option<usize> {
    let size = |index: usize| {
        let text = std::fs::read_to_string(root.join(format!("index{index}/size"))).ok()?;
        parse(text.trim())
    };
    (0..INDEX_MAX).filter_map(size).max()
}

/// A number of bytes such as `32768K`.
fn parse(text: &str) -> Option<usize> {
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse("32768K"), Some(32 << 20));
        assert_eq!(parse("16M"), Some(16 << 20));
        assert_eq!(parse("512"), Some(512));
        for text in ["", "0K", "K", "12X", "-1K", "99999999999999999999K"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_cache_counts_and_none_is_no_error() {
        assert_eq!(largest(Path::new("/nonexistent")), None);
        let folder = std::env::temp_dir().join(format!("sconce-caches-{}", std::process::id()));
        for (index, size) in ["32K", "1024K", "64K"].into_iter().enumerate() {
            let cache = folder.join(format!("index{index}"));
            std::fs::create_dir_all(&cache).unwrap();
            std::fs::write(cache.join("size"), format!("{size}\n")).unwrap();
        }
        let found = largest(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, Some(1 << 20));
    }
}
