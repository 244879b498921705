//! Where a run of the table has its tensors: on the CPU, on a GPU, or, dry, on a GPU that is emulated.

use std::sync::OnceLock;

use candle_core::Device;
use sconce_kernels::Isa;
use sconce_kernels::gpu::{DeviceChoice, Language, is_gpu};
#[cfg(feature = "emulate")]
use sconce_kernels::gpu::{emulate_by_default, emulate_nothing};

/// Names the device that tests make their tensors on; the CPU where it is not set. `emulated:cuda` and
/// `emulated:metal` are dry runs of `cuda` and `metal` where there is no such GPU: all that tests do
/// runs on the emulator, also outside of [`Backend::with`](crate::common::Backend::with).
const DEVICE_VARIABLE: &str = "SCONCE_PARITY_DEVICE";

/// The name of the device.
pub(crate) fn name() -> String {
    std::env::var(DEVICE_VARIABLE).unwrap_or_else(|_| "cpu".to_owned())
}

enum Place {
    Device(Device),
    #[cfg(feature = "emulate")]
    Emulated(Language),
}

/// What [`DEVICE_VARIABLE`] says. A device that is not there fails every test.
fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let name = name();
        #[cfg(feature = "emulate")]
        if let Some(language) = name.strip_prefix("emulated:") {
            let language = match language {
                "cuda" => Language::Cuda,
                "metal" => Language::Metal,
                _ => panic!(
                    "{DEVICE_VARIABLE}: expected `emulated:cuda` or `emulated:metal`, found `{name}`"
                ),
            };
            emulate_by_default(language);
            return Place::Emulated(language);
        }
        Place::Device(name.parse::<DeviceChoice>().unwrap().open().unwrap())
    })
}

/// Where a test's tensors are. That of a dry run is the CPU: what asks whether they are on a GPU asks
/// [`gpu`].
pub(crate) fn device() -> Device {
    match place() {
        Place::Device(device) => device.clone(),
        #[cfg(feature = "emulate")]
        Place::Emulated(_) => Device::Cpu,
    }
}

/// The language of the GPU that a test's tensors are on, or in a dry run would be; none on the CPU,
/// also of a run that emulates a GPU as one backend among others.
pub(crate) fn gpu() -> Option<Language> {
    match place() {
        Place::Device(device) if device.is_cuda() => Some(Language::Cuda),
        Place::Device(device) if device.is_metal() => Some(Language::Metal),
        Place::Device(_) => None,
        #[cfg(feature = "emulate")]
        Place::Emulated(language) => Some(*language),
    }
}

/// The levels of the CPU, for tests of it alone; none on a GPU, which would run them all.
pub(crate) fn levels() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|_| gpu().is_none())
}

/// Runs `body` with operators on tensors of [`Device::Cpu`] being those of the CPU, as they are beside
/// a GPU: in a dry run, where these tensors stand for the GPU's, nothing else reaches them.
pub(crate) fn on_cpu<R>(body: impl FnOnce() -> R) -> R {
    #[cfg(feature = "emulate")]
    let body = || emulate_nothing(body);
    body()
}

#[test]
fn what_is_outside_of_backends_runs_where_tensors_are_on_every_thread() {
    let is_on_gpu = || is_gpu(&device());
    assert_eq!(is_on_gpu(), gpu().is_some());
    assert_eq!(std::thread::spawn(is_on_gpu).join().unwrap(), gpu().is_some());
    assert!(!on_cpu(|| is_gpu(&Device::Cpu)));
}
