//! Holders of pages other than sequences: a cache keeps the pages of a prefix by sharing them, and
//! takes free ones to fill them from elsewhere.

use super::{StateError, StatePool};

impl StatePool {
    /// Adds a holder outside of all sequences to each of `pages`, to one that comes twice two.
    ///
    /// Whoever writes on in the middle of a shared page gets a copy of it first, see
    /// [`reserve`](Self::reserve): what a holder shared never changes.
    ///
    /// # Errors
    /// [`StateError::PageNotHeld`] if nobody holds one of them, [`StateError::PageReserved`] if one
    /// has no token yet; nothing has changed then.
    pub fn share_pages(&mut self, pages: &[u32]) -> Result<(), StateError> {
        self.check_shareable(pages)?;
        for &page in pages {
            self.pages.share(page);
            self.pages.hold(page);
        }
        Ok(())
    }

    /// Removes a holder outside of all sequences from each of `pages`.
    ///
    /// # Errors
    /// [`StateError::PageNotHeld`] if one of them has no such holder, or fewer than it comes times;
    /// nothing has changed then.
    pub fn release_pages(&mut self, pages: &[u32]) -> Result<(), StateError> {
        for (index, &page) in pages.iter().enumerate() {
            if !self.pages.let_go(page) {
                pages[..index].iter().for_each(|&page| self.pages.hold(page));
                return Err(StateError::PageNotHeld { page });
            }
        }
        // Backwards, so that the first page is the next to be taken.
        pages.iter().rev().for_each(|&page| self.pages.release(page));
        Ok(())
    }

    /// Takes free pages for a holder outside of all sequences. What they hold is unspecified until
    /// [`write_page`](Self::write_page).
    ///
    /// # Errors
    /// [`StateError::OutOfPages`].
    pub fn take_pages(&mut self, count: usize) -> Result<Vec<u32>, StateError> {
        let (free, max) = (self.pages.free(), self.layout.pages_max);
        if count > free {
            return Err(StateError::OutOfPages { needed: count, free, max });
        }
        let mut take = || {
            let page = self.pages.take().expect("as many were just counted as free");
            self.pages.hold(page);
            page
        };
        Ok((0..count).map(|_| take()).collect())
    }

    /// Whether a page has a holder outside of all sequences.
    pub fn is_held_outside(&self, page: u32) -> bool {
        self.pages.is_held_outside(page)
    }

    /// How many holders a page has, sequences and others; 0 for a page that is free or not there.
    pub fn page_holders(&self, page: u32) -> u32 {
        self.pages.holders(page)
    }

    /// Refuses pages that nobody holds, and those that a sequence has reserved: it would write to
    /// them and not know that they are shared.
    pub(super) fn check_shareable(&self, pages: &[u32]) -> Result<(), StateError> {
        if let Some(&page) = pages.iter().find(|page| self.pages.holders(**page) == 0) {
            return Err(StateError::PageNotHeld { page });
        }
        let reserved = self.slots.iter().filter_map(|slot| slot.sequence.as_ref()).flat_map(|of| {
            let held = of.len.div_ceil(self.layout.page_tokens);
            &of.table[held..]
        });
        match reserved.into_iter().find(|page| pages.contains(page)) {
            None => Ok(()),
            Some(&page) => Err(StateError::PageReserved { page }),
        }
    }
}
