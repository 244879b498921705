//! Memory that kernels of an operator pass one another results in. It belongs to the thread and is
//! kept for the next call: launches run one after another, so all of them can share it, and what a
//! recorded step points to stays where it is.

use std::cell::RefCell;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Most tensors that are kept: each is at least twice as large as the one before.
const KEPT_MAX: usize = 32;

thread_local! {
    static KEPT: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
}

/// A tensor of at least `words` 32-bit words, as `u32`; what they hold is left from earlier calls.
///
/// # Errors
/// No memory left on the device.
pub(crate) fn scratch(op: &'static str, device: &Device, words: usize) -> Result<Tensor> {
    KEPT.with_borrow_mut(|kept| {
        let fits =
            |tensor: &&Tensor| tensor.elem_count() >= words && tensor.device().same_device(device);
        if let Some(tensor) = kept.iter().find(fits) {
            return Ok(tensor.clone());
        }
        let refused = |what: String| Error::Device { op, what };
        if kept.len() == KEPT_MAX {
            return Err(refused(format!("{KEPT_MAX} tensors are kept already")));
        }
        // No kernel may take what it finds for zeros.
        let tensor = Tensor::full(u32::MAX, words.next_power_of_two(), device)
            .map_err(|error| refused(error.to_string()))?;
        kept.push(tensor.clone());
        Ok(tensor)
    })
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
