//! What must hold of a pool after every operation.

use super::StatePool;

impl StatePool {
    /// Verifies that counts, tables and free lists agree: every page and every recurrent slot is free
    /// or has exactly the holders that are known; for tests and for a server's self-check.
    ///
    /// # Errors
    /// Says what disagrees.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut named = vec![0_u32; self.layout.pages_max];
        let mut open = Vec::new();
        for (slot, sequence) in self.slots.iter().enumerate() {
            let Some(sequence) = &sequence.sequence else { continue };
            open.push((slot as u32, sequence.recurrent));
            for &page in &sequence.table {
                named[page as usize] += 1;
            }
            if sequence.len > sequence.table.len() * self.layout.page_tokens {
                return Err(format!("slot {slot} has more tokens than pages for them"));
            }
            let reserved = &sequence.table[sequence.len.div_ceil(self.layout.page_tokens)..];
            if reserved.iter().any(|&page| self.pages.is_shared(page)) {
                return Err(format!("slot {slot} shares a page it reserved"));
            }
        }
        if open.len() != self.sequences() {
            return Err(format!("{} slots are open, {} are counted", open.len(), self.sequences()));
        }
        self.recurrent_slots.check(&open)?;
        self.pages.check(&named)
    }
}
