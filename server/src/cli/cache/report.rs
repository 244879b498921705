//! What of a prompt was remembered, for people and for programs.

use sconce_proto::v1::{CacheReason, CacheReport, Tier};
use serde_json::{Value, json};

/// A report in one line: `512 tokens matched, 448 resumed from host, 65 computed; ...`.
pub(crate) fn line(report: &CacheReport) -> String {
    let from = match report.tier() {
        Tier::Unspecified => String::new(),
        tier => format!(" from {}", tier_name(tier)),
    };
    let mut text = format!(
        "{} tokens matched, {} resumed{from}, {} computed; {}",
        report.matched_tokens,
        report.resumed_tokens,
        report.recomputed_tokens,
        explained(report.reason()),
    );
    // At the first token of all it says the same as the reason.
    if let Some(index) = report.divergence_index.filter(|&index| index > 0) {
        text += &format!("; from token {index} on it is not what is remembered");
    }
    text
}

/// A tier as people call it.
pub(crate) fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Unspecified => "-",
        Tier::Device => "device",
        Tier::Host => "host",
        Tier::Disk => "disk",
    }
}

/// A reason as an explanation.
pub(crate) fn explained(reason: CacheReason) -> &'static str {
    match reason {
        CacheReason::Unspecified => "not told why no more",
        CacheReason::Full => "all of it is remembered",
        CacheReason::NotFound => "nothing that begins like it is remembered",
        CacheReason::Diverged => "it differs from what is remembered",
        CacheReason::NoRestorePoint => "no restore point lies further on",
        CacheReason::Evicted => "more was remembered and has been evicted",
        CacheReason::MediaDiffers => "the media differ",
        CacheReason::Bypassed => "the cache was bypassed",
        CacheReason::Disabled => "the server keeps no cache for the model",
    }
}

/// A report as JSON, named as in the protocol.
pub(crate) fn json(report: &CacheReport) -> Value {
    json!({
        "matched_tokens": report.matched_tokens,
        "resumed_tokens": report.resumed_tokens,
        "recomputed_tokens": report.recomputed_tokens,
        "tier": report.tier().as_str_name(),
        "reason": report.reason().as_str_name(),
        "divergence_index": report.divergence_index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_done_and_why_no_more() {
        let report = CacheReport {
            matched_tokens: 500,
            resumed_tokens: 448,
            recomputed_tokens: 65,
            tier: Tier::Host.into(),
            reason: CacheReason::NoRestorePoint.into(),
            divergence_index: Some(500),
        };
        assert_eq!(
            line(&report),
            "500 tokens matched, 448 resumed from host, 65 computed; no restore point lies further \
             on; from token 500 on it is not what is remembered"
        );
        let cold = CacheReport {
            recomputed_tokens: 5,
            reason: CacheReason::NotFound.into(),
            divergence_index: Some(0),
            ..CacheReport::default()
        };
        assert_eq!(
            line(&cold),
            "0 tokens matched, 0 resumed, 5 computed; nothing that begins like it is remembered"
        );
    }
}
