//! What computes besides the processor: GPUs that the build can use, and those that it cannot.

use std::path::Path;

use sconce_models::{DeviceError, GpuDescription};

use super::Check;
use crate::cli::output;

/// Where the NVIDIA driver of Linux says that it runs.
const NVIDIA_DRIVER: &str = "/proc/driver/nvidia/version";

/// A check for each GPU, or one that says why there is none.
pub(super) fn checks() -> Vec<Check> {
    let driver = std::fs::read_to_string(Path::new(NVIDIA_DRIVER)).ok();
    let mut checks = backend("cuda", cfg!(feature = "cuda"), GpuDescription::cuda(), driver);
    if cfg!(target_os = "macos") {
        checks.extend(backend("metal", cfg!(feature = "metal"), GpuDescription::metal(), None));
    }
    checks
}

/// What one backend finds. `present` is what tells of its GPUs to a build without it.
fn backend(
    name: &str,
    built: bool,
    found: Result<Vec<GpuDescription>, DeviceError>,
    present: Option<String>,
) -> Vec<Check> {
    let subject = format!("gpu ({name})");
    match found {
        Ok(gpus) if gpus.is_empty() => {
            let advice = "it computes on the processor; give the container or the user the devices \
                          if there should be some";
            vec![Check::warn(subject, "the driver is there and lists none", advice)]
        }
        Ok(gpus) => gpus.iter().map(|gpu| Check::ok(subject.clone(), described(gpu))).collect(),
        Err(error) if built => {
            let advice = "it computes on the processor; docs/OPERATIONS.md, Building for GPUs, says \
                          which driver is needed";
            vec![Check::warn(subject, error.to_string(), advice)]
        }
        Err(_) => match present {
            Some(driver) => {
                let driver = driver.lines().next().unwrap_or_default().trim().to_owned();
                let advice = format!("build with --features {name} to use its GPUs");
                let found = format!("not in this build, but a driver runs: {driver}");
                vec![Check::warn(subject, found, advice)]
            }
            None => vec![Check::ok(subject, "not in this build, and no driver runs")],
        },
    }
}

fn described(gpu: &GpuDescription) -> String {
    let mut text = format!("{}: {}", gpu.choice, gpu.name);
    if let Some((major, minor)) = gpu.compute_capability {
        text += &format!(", compute capability {major}.{minor}");
    }
    if let Some(bytes) = gpu.memory_bytes {
        text += &format!(", {}", output::bytes(bytes));
    }
    if let Some((major, minor)) = gpu.driver {
        text += &format!(", driver for CUDA {major}.{minor}");
    }
    text
}

#[cfg(test)]
mod tests {
    use sconce_models::DeviceChoice;

    use super::super::Level;
    use super::*;

    fn missing() -> DeviceError {
        DeviceError { expected: "a build with feature `cuda`".into(), found: "one without".into() }
    }

    #[test]
    fn a_gpu_that_the_build_cannot_use_is_told() {
        let checks = backend("cuda", false, Err(missing()), Some("NVRM version: 580\n".into()));
        assert_eq!(checks[0].level, Level::Warn);
        assert!(checks[0].found.ends_with("NVRM version: 580"), "{checks:?}");
        let checks = backend("cuda", false, Err(missing()), None);
        assert_eq!(checks[0].level, Level::Ok);
        let checks = backend("cuda", true, Err(missing()), None);
        assert_eq!(checks[0].level, Level::Warn);
    }

    #[test]
    fn a_gpu_is_described() {
        let gpu = GpuDescription {
            choice: DeviceChoice::Cuda(1),
            name: "NVIDIA H200".into(),
            memory_bytes: Some(140_000_000_000),
            compute_capability: Some((9, 0)),
            driver: Some((13, 0)),
        };
        assert_eq!(
            described(&gpu),
            "cuda:1: NVIDIA H200, compute capability 9.0, 140.00 GB, driver for CUDA 13.0"
        );
    }
}
