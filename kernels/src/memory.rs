//! Large pages of memory for what a token reads from end to end: a fifth to a half more bandwidth
//! where the processor would otherwise look up every 4 KiB of weights.

/// Of x86-64, and of aarch64 with pages of 4 KiB; elsewhere the system refuses or rounds.
const HUGE_PAGE: usize = 2 << 20;
/// Memory below which nothing is gained.
const LEN_MIN: usize = 64 * 1024;

/// Asks the system to gather the memory of `bytes`, which has been written, into huge pages. A wish:
/// a system that cannot, or does not want to, leaves everything as it is.
///
/// The huge pages at either end may hold something else too: a part that is not yet mapped is left
/// alone, and gathered when what lies there asks.
pub(crate) fn gather_huge_pages<T: Copy>(elements: &[T]) {
    let len = size_of_val(elements);
    if len >= LEN_MIN {
        gather(elements.as_ptr().addr(), len);
    }
}

/// Asks the system for huge pages where the memory of `elements` has not been written yet.
pub fn prefer_huge_pages<T: Copy>(elements: &[T]) {
    let len = size_of_val(elements);
    if len >= LEN_MIN {
        prefer(elements.as_ptr().addr(), len);
    }
}

#[cfg(target_os = "linux")]
fn prefer(start: usize, len: usize) {
    /// To whole pages of memory, which advice is given for.
    const PAGE: usize = 64 * 1024;
    let first = start.next_multiple_of(PAGE);
    let end = (start + len) & !(PAGE - 1);
    // SAFETY: as in `gather`; the advice is of Linux 2.6.38.
    unsafe {
        libc::madvise(std::ptr::without_provenance_mut(first), end - first, libc::MADV_HUGEPAGE)
    };
}

#[cfg(target_os = "linux")]
fn gather(start: usize, len: usize) {
    let first = start & !(HUGE_PAGE - 1);
    let Some(end) = (start + len).checked_next_multiple_of(HUGE_PAGE) else { return };
    // SAFETY: the advice (Linux 6.1) changes which physical pages back the range, never what is
    // read there or what may be accessed; memory that is not mapped, or not of this process alone,
    // is skipped. Its failure leaves things as they were, so the result does not matter.
    unsafe {
        libc::madvise(std::ptr::without_provenance_mut(first), end - first, libc::MADV_COLLAPSE)
    };
}

#[cfg(not(target_os = "linux"))]
fn gather(_start: usize, _len: usize) {}

#[cfg(not(target_os = "linux"))]
fn prefer(_start: usize, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gathered_stays_what_it_was() {
        for len in [0, 1, LEN_MIN / 4, (5 << 20) / 4 + 3] {
            let mut numbers = vec![0; len];
            prefer_huge_pages(&numbers);
            for (index, number) in numbers.iter_mut().enumerate() {
                *number = index as u32;
            }
            gather_huge_pages(&numbers);
            assert!(numbers.iter().copied().eq(0..len as u32));
            // And can still be written and freed.
            numbers.fill(7);
            assert!(numbers.iter().all(|number| *number == 7));
        }
    }
}
