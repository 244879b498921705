//! What is on the screen: the last look, a short history, and where the reader is.

use std::collections::VecDeque;
use std::time::Instant;

use sconce_proto::v1::GetStatusResponse;

use super::rates::Rates;

/// Looks that the lines of history go back.
pub(super) const HISTORY_MAX: usize = 240;

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    /// Whom it shows.
    pub(super) address: String,
    /// The last look, and when it was.
    pub(super) last: Option<(GetStatusResponse, Instant)>,
    /// What happened between looks, oldest first.
    pub(super) history: VecDeque<Rates>,
    /// Why the server cannot be seen now.
    pub(super) problem: Option<String>,
    /// Which model the cursor is on.
    pub(super) selected: usize,
    /// The tree that is shown instead of the models.
    pub(super) tree: Option<Tree>,
}

/// A tree of a model's cache on the screen.
#[derive(Debug)]
pub(super) struct Tree {
    /// Whose.
    pub(super) model: String,
    /// Its drawing, line by line; none before the first answer.
    pub(super) lines: Vec<String>,
    /// The line at the top.
    pub(super) offset: usize,
}

impl View {
    /// Nothing seen yet.
    pub(super) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            last: None,
            history: VecDeque::new(),
            problem: None,
            selected: 0,
            tree: None,
        }
    }

    /// Takes a look that was made at `now`.
    pub(super) fn see(&mut self, status: GetStatusResponse, now: Instant) {
        if let Some((before, at)) = &self.last {
            let (before, after) = (before.totals.clone(), status.totals.clone());
            let elapsed = now.saturating_duration_since(*at);
            let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
            self.history.push_back(Rates::between(&before, &after, elapsed));
            if self.history.len() > HISTORY_MAX {
                self.history.pop_front();
            }
        }
        self.selected = self.selected.min(status.models.len().saturating_sub(1));
        self.last = Some((status, now));
        self.problem = None;
    }

    /// The server could not be seen.
    pub(super) fn lose(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// What happened last.
    pub(super) fn rates(&self) -> Rates {
        self.history.back().copied().unwrap_or_default()
    }

    /// Moves the cursor, or what is seen of the tree.
    pub(super) fn go(&mut self, by: isize) {
        let (place, count) = match &mut self.tree {
            Some(tree) => (&mut tree.offset, tree.lines.len()),
            None => {
                let models = self.last.as_ref().map_or(0, |(status, _)| status.models.len());
                (&mut self.selected, models)
            }
        };
        *place = place.saturating_add_signed(by).min(count.saturating_sub(1));
    }

    /// Opens the tree of the selected model, or closes the one that is open.
    pub(super) fn toggle_tree(&mut self) {
        if self.close_tree() {
            return;
        }
        let model = self.last.as_ref().and_then(|(status, _)| status.models.get(self.selected));
        self.tree =
            model.map(|model| Tree { model: model.model.clone(), lines: Vec::new(), offset: 0 });
    }

    /// Closes the tree; whether one was open.
    pub(super) fn close_tree(&mut self) -> bool {
        self.tree.take().is_some()
    }

    /// The model whose tree is shown.
    pub(super) fn tree_model(&self) -> Option<String> {
        self.tree.as_ref().map(|tree| tree.model.clone())
    }

    /// Takes a drawing of the tree.
    pub(super) fn see_tree(&mut self, drawing: String) {
        if let Some(tree) = &mut self.tree {
            tree.lines = drawing.lines().map(str::to_owned).collect();
            tree.offset = tree.offset.min(tree.lines.len().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use sconce_proto::v1::ModelStatus;

    use super::*;

    fn seen(models: &[&str]) -> View {
        let mut view = View::new("here");
        let model = |name: &&str| ModelStatus { model: (*name).into(), ..ModelStatus::default() };
        let models = models.iter().map(model).collect();
        view.see(GetStatusResponse { models, ..GetStatusResponse::default() }, Instant::now());
        view
    }

    #[test]
    fn the_cursor_stays_on_a_model() {
        let mut view = seen(&["a", "b"]);
        view.go(5);
        assert_eq!(view.selected, 1);
        view.see(GetStatusResponse::default(), Instant::now());
        assert_eq!(view.selected, 0, "the models are gone");
        view.go(-1);
        assert_eq!(view.selected, 0);
        view.toggle_tree();
        assert!(view.tree.is_none(), "without a model there is no tree");
    }

    #[test]
    fn a_tree_is_that_of_the_model_and_scrolls_within_its_lines() {
        let mut view = seen(&["a", "b"]);
        view.go(1);
        view.toggle_tree();
        assert_eq!(view.tree_model().as_deref(), Some("b"));
        view.see_tree("1\n2\n3\n".into());
        view.go(20);
        assert_eq!(view.tree.as_ref().map(|tree| tree.offset), Some(2));
        view.see_tree("1\n".into());
        assert_eq!(view.tree.as_ref().map(|tree| tree.offset), Some(0));
        assert!(view.close_tree());
        assert!(!view.close_tree());
    }

    #[test]
    fn history_is_bounded() {
        let mut view = View::new("here");
        for _ in 0..HISTORY_MAX + 10 {
            view.see(GetStatusResponse::default(), Instant::now());
        }
        assert_eq!(view.history.len(), HISTORY_MAX);
    }
}
