//! Where restore points are made: offsets of a prompt at which the state is kept on the way.
//!
//! Only for models with state that cannot be cut. All offsets lie on the grid, so that a span that
//! ends at one ends with a page; but those at the end of a prompt lie where they serve a repeat best.

use std::collections::BTreeSet;

use sconce_models::PAGE_TOKENS;

/// Most restore points of one request, besides those in its first half. What is asked for and what
/// serves a repeat comes first.
pub(crate) const POINTS_PER_REQUEST_MAX: usize = 32;
/// Most restore points that fill gaps at the front of a prompt, and up to which offset a gap may
/// stay.
const FRONT_POINTS_MAX: usize = 4;
const FRONT_TOKENS: usize = 1024;

/// Tokens before the end of a prompt that may change from one request to the next, as templates
/// often end with a few that do. The state before them is kept where it is, off the grid, so that a
/// repeat computes no more.
const TAIL_TOKENS: usize = 4;

/// How closely restore points follow each other where nothing else asks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spacing {
    /// A restore point every so many tokens; 0 for none.
    pub every: usize,
    /// Distances from the end of the prompt grow by this factor; below 2 there are none.
    pub tail_factor: usize,
}

impl Default for Spacing {
    fn default() -> Self {
        Self { every: 8192, tail_factor: 4 }
    }
}

/// What is known of a prompt before it is computed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outlook<'a> {
    /// Its length.
    pub(crate) tokens: usize,
    /// Where it is resumed.
    pub(crate) resumed: usize,
    /// Offsets that the caller named.
    pub(crate) hints: &'a [usize],
    /// Offsets at which messages end.
    pub(crate) boundaries: &'a [usize],
    /// How much of it others had in common with it, if more than could be resumed.
    pub(crate) branch: Option<usize>,
    /// Whether the state after the very last token is wanted too, on the grid or not.
    pub(crate) whole: bool,
}

/// The offsets to keep, ascending, each above `resumed`.
///
/// A change `d` tokens before the end finds one at most `tail_factor * d` and a page before the end,
/// so that it costs no more than that to compute again.
pub(crate) fn restore_points(outlook: &Outlook<'_>, spacing: Spacing) -> Vec<usize> {
    let Outlook { tokens, resumed, .. } = *outlook;
    let mut chosen = BTreeSet::new();
    let mut choose = |offset: usize| {
        if offset > resumed && offset <= tokens && chosen.len() < POINTS_PER_REQUEST_MAX {
            chosen.insert(offset);
        }
    };
    if outlook.whole {
        choose(tokens);
    }
    // The last token is always computed again, so a point after it would serve no repeat.
    let last = tokens.saturating_sub(1);
    outlook.hints.iter().for_each(|&hint| choose(on_grid(hint.min(last))));
    choose(tokens.saturating_sub(TAIL_TOKENS));
    let mut choose = |offset: usize| choose(on_grid(offset.min(last)));
    outlook.branch.into_iter().for_each(&mut choose);
    outlook.boundaries.iter().rev().for_each(|&boundary| choose(boundary));
    tail_distances(spacing.tail_factor, tokens).for_each(|back| choose(tokens - back));
    if spacing.every > 0 {
        let every = on_grid(spacing.every).max(PAGE_TOKENS);
        // From the end, for those at the front are the likeliest to be there already.
        (1..=last / every).rev().for_each(|number| choose(number * every));
    }
    if spacing.tail_factor > 1 {
        fill_front(&mut chosen, tokens, resumed);
    }
    chosen.into_iter().collect()
}

/// Distances from the end grow fast: a prompt may have no point in its first half, or none for long
/// near its front, where those part that share only their beginning. Halves what is bare.
fn fill_front(chosen: &mut BTreeSet<usize>, tokens: usize, resumed: usize) {
    let middle = on_grid(tokens / 2);
    if resumed < middle / 2 && chosen.range(on_grid(tokens / 4)..=middle).next().is_none() {
        chosen.insert(middle);
    }
    for _ in 0..FRONT_POINTS_MAX {
        let befores = std::iter::once(resumed).chain(chosen.iter().copied());
        let gap = befores.zip(chosen.iter().copied());
        let wide = |&(before, after): &(usize, usize)| after > FRONT_TOKENS && after > 4 * before;
        let Some((_, after)) = gap.filter(wide).last() else { return };
        chosen.insert(on_grid(after / 2));
    }
}

/// `offset` rounded down to where a page ends.
pub(crate) fn on_grid(offset: usize) -> usize {
    offset / PAGE_TOKENS * PAGE_TOKENS
}

fn tail_distances(factor: usize, tokens: usize) -> impl Iterator<Item = usize> {
    let next = move |back: &usize| back.checked_mul(factor).filter(|_| factor > 1);
    std::iter::successors(Some(PAGE_TOKENS), next)
        .take_while(move |&back| factor > 1 && back < tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(outlook: &Outlook<'_>) -> Vec<usize> {
        restore_points(outlook, Spacing::default())
    }

    #[test]
    fn a_long_prompt_has_points_on_the_way_and_denser_ones_near_its_end() {
        let found = points(&Outlook { tokens: 20_000, ..Outlook::default() });
        assert_eq!(found, [896, 1792, 3584, 8192, 15_872, 16_384, 18_944, 19_712, 19_904, 19_996]);
    }

    #[test]
    fn a_prompt_that_is_new_has_points_in_its_first_half() {
        let found = points(&Outlook { tokens: 4096, ..Outlook::default() });
        assert_eq!(found, [1024, 2048, 3072, 3840, 4032, 4092]);
        let outlook = Outlook { tokens: 4096, resumed: 1024, ..Outlook::default() };
        assert_eq!(points(&outlook), [3072, 3840, 4032, 4092]);
    }

    #[test]
    fn what_was_resumed_has_its_points_already() {
        let outlook = Outlook { tokens: 20_000, resumed: 19_904, ..Outlook::default() };
        assert_eq!(points(&outlook), [19_996]);
        assert!(points(&Outlook { tokens: 4, ..Outlook::default() }).is_empty());
    }

    #[test]
    fn hints_boundaries_and_branches_are_rounded_down_to_the_grid() {
        let outlook = Outlook {
            tokens: 1000,
            hints: &[130],
            boundaries: &[400, 999],
            branch: Some(700),
            whole: true,
            ..Outlook::default()
        };
        let spacing = Spacing { every: 0, tail_factor: 0 };
        assert_eq!(restore_points(&outlook, spacing), [128, 384, 640, 960, 996, 1000]);
    }

    #[test]
    fn the_bound_keeps_what_was_asked_for() {
        let hints: Vec<usize> = (1..=100).map(|i| i * 64).collect();
        let outlook = Outlook { tokens: 100_000, hints: &hints, ..Outlook::default() };
        let found = points(&outlook);
        assert_eq!(found[..POINTS_PER_REQUEST_MAX], hints[..POINTS_PER_REQUEST_MAX]);
        assert_eq!(found[POINTS_PER_REQUEST_MAX..], [6208, 12_480, 24_960, 49_984]);
    }

    proptest! {
        #[test]
        fn a_beginning_that_is_shared_is_not_computed_whole(
            tokens in 1_usize..40_000,
            shared in 2048_usize..40_000,
        ) {
            prop_assume!(shared < tokens);
            let found = points(&Outlook { tokens, ..Outlook::default() });
            let usable = found.iter().rev().find(|&&offset| offset <= shared);
            let resumed = usable.copied().unwrap_or(0);
            prop_assert!(4 * (resumed + PAGE_TOKENS) >= shared, "{} of {}", resumed, shared);
        }

        #[test]
        fn a_change_near_the_end_costs_little(
            tokens in 1_usize..40_000,
            back in 1_usize..40_000,
        ) {
            prop_assume!(back <= tokens);
            let found = points(&Outlook { tokens, ..Outlook::default() });
            prop_assert!(found.is_sorted() && found.iter().all(|&offset| offset < tokens));
            let usable = found.iter().rev().find(|&&offset| offset <= tokens - back);
            let recomputed = tokens - usable.copied().unwrap_or(0);
            prop_assert!(recomputed <= 4 * back + 128, "{} tokens for {}", recomputed, back);
        }
    }
}
