//! Memory that kernels of an operator pass one another results in. It belongs to the thread and is
//! kept for the next call: launches run one after another, so all of them can share it, and what a
//! recorded step points to stays where it is. And counters, by which blocks of a launch learn which of
//! them comes last.

use std::cell::RefCell;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Most tensors that are kept: each is at least twice as large as the one before.
const KEPT_MAX: usize = 32;

thread_local! {
    static KEPT: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
    static COUNTERS: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
}

/// A tensor of at least `words` 32-bit words, as `u32`; what they hold is left from earlier calls.
///
/// # Errors
/// No memory left on the device.
pub(crate) fn scratch(op: &'static str, device: &Device, words: usize) -> Result<Tensor> {
    // No kernel may take what it finds for zeros.
    KEPT.with_borrow_mut(|kept| kept_of(op, device, words, (kept, u32::MAX)))
}

/// A tensor of at least `words` counters, as `u32`: zeros, as every kernel must leave them.
///
/// # Errors
/// No memory left on the device.
pub(crate) fn counters(op: &'static str, device: &Device, words: usize) -> Result<Tensor> {
    COUNTERS.with_borrow_mut(|kept| kept_of(op, device, words, (kept, 0)))
}

/// A tensor that is kept, or a new one filled with a word.
fn kept_of(
    op: &'static str,
    device: &Device,
    words: usize,
    (kept, fill): (&mut Vec<Tensor>, u32),
) -> Result<Tensor> {
    let fits =
        |tensor: &&Tensor| tensor.elem_count() >= words && tensor.device().same_device(device);
    if let Some(tensor) = kept.iter().find(fits) {
        return Ok(tensor.clone());
    }
    let refused = |what: String| Error::Device { op, what };
    if kept.len() == KEPT_MAX {
        return Err(refused(format!("{KEPT_MAX} tensors are kept already")));
    }
    let tensor = Tensor::full(fill, words.next_power_of_two(), device)
        .map_err(|error| refused(error.to_string()))?;
    kept.push(tensor.clone());
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_what_was_given_stays() {
        let address = |tensor: &Tensor| format!("{:?}", tensor.id());
        let small = scratch("op", &Device::Cpu, 100).unwrap();
        let again = scratch("op", &Device::Cpu, 128).unwrap();
        assert_eq!(address(&small), address(&again));
        let large = scratch("op", &Device::Cpu, 129).unwrap();
        assert_eq!(large.elem_count(), 256);
        assert_eq!(address(&scratch("op", &Device::Cpu, 1).unwrap()), address(&small));
        assert_eq!(address(&scratch("op", &Device::Cpu, 200).unwrap()), address(&large));
    }
}
