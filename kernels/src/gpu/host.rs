//! Memory of the host for what moves to and from a device: locked in place where a GPU copies to such
//! memory by itself, without a detour, and ordinary memory elsewhere.

use std::fmt;
use std::ops::{Deref, DerefMut};

use candle_core::Device;

#[cfg(feature = "cuda")]
use super::cuda::Pinned;

/// Some bytes of the host.
pub struct HostBuffer {
    memory: Memory,
    is_detour: bool,
}

enum Memory {
    Ordinary(Box<[u8]>),
    #[cfg(feature = "cuda")]
    Pinned(Pinned),
}

impl HostBuffer {
    /// `len` bytes for copies to and from `device`; what they are is unspecified. Ordinary memory if
    /// the system does not let more be locked.
    pub fn new(device: &Device, len: usize) -> Self {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device
            && let Some(pinned) = Pinned::new(device, len)
        {
            return Self { memory: Memory::Pinned(pinned), is_detour: false };
        }
        let memory = Memory::Ordinary(vec![0; len].into());
        Self { memory, is_detour: device.is_cuda() && len > 0 }
    }

    /// Whether copies to and from the device go through memory of its driver on the way, as the system
    /// has refused to lock this.
    pub fn is_detour(&self) -> bool {
        self.is_detour
    }
}

impl Deref for HostBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Ordinary(bytes) => bytes,
            #[cfg(feature = "cuda")]
            Memory::Pinned(pinned) => pinned,
        }
    }
}

impl DerefMut for HostBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Ordinary(bytes) => bytes,
            #[cfg(feature = "cuda")]
            Memory::Pinned(pinned) => pinned,
        }
    }
}

impl AsRef<[u8]> for HostBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBuffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_the_cpu_is_ordinary_and_of_the_length_asked_for() {
        let mut buffer = HostBuffer::new(&Device::Cpu, 5);
        buffer.copy_from_slice(&[1, 2, 3, 4, 5]);
        assert_eq!((&buffer[..], buffer.as_ref().len()), (&[1, 2, 3, 4, 5][..], 5));
        assert!(!buffer.is_detour());
    }
}
