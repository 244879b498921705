//! Which pages are free and how many hold each of the others: sequences by their tables, and others
//! from outside. Only numbers: the bytes behind a page are `kv.rs`.

/// A free list and a reference count for every page.
#[derive(Debug)]
pub(super) struct Pages {
    /// How many page tables name the page and how many others hold it, together; 0 means that it is
    /// on the free list.
    references: Vec<u32>,
    /// How many of them are no page tables.
    outside: Vec<u32>,
    /// Free pages; the last one is taken next, so that memory touched before is used again first.
    free: Vec<u32>,
}

impl Pages {
    /// `pages_max` free pages.
    pub(super) fn new(pages_max: u32) -> Self {
        let none = vec![0; pages_max as usize];
        Self { references: none.clone(), outside: none, free: (0..pages_max).rev().collect() }
    }

    /// How many pages are free.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many pages are held.
    pub(super) fn used(&self) -> usize {
        self.references.len() - self.free.len()
    }

    /// Takes a free page for one holder; `None` when there is none.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.references[page as usize] = 1;
        Some(page)
    }

    /// Adds a holder to a page that is held.
    pub(super) fn share(&mut self, page: u32) {
        debug_assert!(self.references[page as usize] > 0, "page {page} is free");
        self.references[page as usize] += 1;
    }

    /// Removes a holder; the last one frees the page.
    pub(super) fn release(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        debug_assert!(*references > 0, "page {page} is free already");
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
    }

    /// Marks one of the holders as no page table.
    pub(super) fn hold(&mut self, page: u32) {
        self.outside[page as usize] += 1;
    }

    /// Whether one of the holders is no page table.
    pub(super) fn is_held_outside(&self, page: u32) -> bool {
        self.outside.get(page as usize).is_some_and(|outside| *outside > 0)
    }

    /// Takes such a mark back, of which `false` says that there is none.
    pub(super) fn let_go(&mut self, page: u32) -> bool {
        match self.outside.get_mut(page as usize) {
            Some(outside) if *outside > 0 => {
                *outside -= 1;
                true
            }
            _ => false,
        }
    }

    /// How many hold the page; 0 for one that is not there.
    pub(super) fn holders(&self, page: u32) -> u32 {
        self.references.get(page as usize).copied().unwrap_or(0)
    }

    /// How many of the holders are no page tables.
    pub(super) fn outside(&self, page: u32) -> u32 {
        self.outside.get(page as usize).copied().unwrap_or(0)
    }

    /// Whether the page has more than one holder, so that nobody may write to it.
    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.references[page as usize] > 1
    }

    /// Compares the counts with `named`, the number of times page tables name each page, and with
    /// the free list.
    pub(super) fn check(&self, named: &[u32]) -> Result<(), String> {
        let holders = |(named, outside): (&u32, &u32)| named + outside;
        let expected: Vec<u32> = named.iter().zip(&self.outside).map(holders).collect();
        if self.references != expected {
            let page = self.references.iter().zip(&expected).position(|(a, b)| a != b);
            return Err(format!("page {page:?} has a count other than its holders"));
        }
        let mut is_free = vec![false; expected.len()];
        for &page in &self.free {
            if std::mem::replace(&mut is_free[page as usize], true) {
                return Err(format!("page {page} is on the free list twice"));
            }
        }
        match is_free.iter().zip(&expected).position(|(free, &count)| *free != (count == 0)) {
            None => Ok(()),
            Some(page) => Err(format!("page {page} is neither free nor held, or both")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_again_when_its_last_holder_lets_go() {
        let mut pages = Pages::new(1);
        let page = pages.take().unwrap();
        assert_eq!(pages.take(), None);
        pages.share(page);
        assert!(pages.is_shared(page));
        pages.release(page);
        assert_eq!((pages.free(), pages.used()), (0, 1));
        pages.release(page);
        assert_eq!((pages.free(), pages.used()), (1, 0));
        pages.check(&[0]).unwrap();
    }

    #[test]
    fn the_page_freed_last_is_taken_first() {
        let mut pages = Pages::new(3);
        let (first, second) = (pages.take().unwrap(), pages.take().unwrap());
        assert_eq!((first, second), (0, 1));
        pages.release(first);
        assert_eq!(pages.take(), Some(first));
    }

    #[test]
    fn the_check_notices_a_wrong_count() {
        let mut pages = Pages::new(2);
        let page = pages.take().unwrap();
        assert_eq!(page, 0);
        assert!(pages.check(&[2, 0]).is_err());
        assert!(pages.check(&[0, 0]).is_err());
        pages.check(&[1, 0]).unwrap();
        pages.hold(page);
        pages.check(&[0, 0]).unwrap();
        assert!(pages.check(&[1, 0]).is_err());
    }

    #[test]
    fn a_mark_is_taken_back_as_often_as_it_was_made() {
        let mut pages = Pages::new(2);
        let page = pages.take().unwrap();
        assert!(!pages.let_go(page) && !pages.let_go(7));
        pages.hold(page);
        pages.share(page);
        assert_eq!((pages.holders(page), pages.outside(page)), (2, 1));
        assert_eq!((pages.holders(7), pages.outside(7)), (0, 0));
        assert!(pages.let_go(page) && !pages.let_go(page));
    }
}
