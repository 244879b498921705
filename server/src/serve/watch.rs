//! What health says, and on what grounds: models that are ready, and a device thread that turns.

use std::time::Duration;

use sconce_engine::{DeviceStatus, LoadSettings};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{ModelPlan, ServeError, ServePlan};
use crate::grpc::health::{HealthBoard, Vitals};
use crate::models::{Condition, Models};

/// How often the device thread's pulse is felt, unless the longest step is shorter.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);

/// Oldest sign of life of a device thread that is not inside a step. It gives one each second;
/// between steps it may have to move state of gigabytes.
const BEAT_AGE_MAX: Duration = Duration::from_secs(60);

/// How long readiness is off after a restart of the engine, at least: watchers see it, and balancers
/// send elsewhere what would be lost if it panics again at once.
const RESTART_NOTICE: Duration = Duration::from_secs(1);

/// Loads what was planned and keeps `health` true from then on; ends only if a load fails or the
/// device thread is lost.
pub(super) async fn over(plan: &ServePlan, models: &Models, health: &HealthBoard) -> ServeError {
    if let Err(error) = load(&plan.models, models).await {
        return error;
    }
    let step_time_max = plan.engine.step_time_max;
    let mut pulse = interval(PULSE_INTERVAL.min(step_time_max.max(Duration::from_millis(1))));
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Condition::default();
    let mut ready_from = Instant::now();
    loop {
        let alive = is_alive(&models.device(), step_time_max);
        let ready = known.ready && ready_from <= Instant::now();
        health.set(Vitals { alive, ready, draining: false });
        tokio::select! {
            condition = models.condition_other_than(known) => {
                if condition.lost {
                    return ServeError::EngineLost { restarts: condition.restarts };
                }
                if condition.restarts != known.restarts {
                    ready_from = Instant::now() + RESTART_NOTICE;
                }
                known = condition;
            }
            () = sleep_until(ready_from), if known.ready && !ready => {}
            _ = pulse.tick() => {}
        }
    }
}

async fn load(planned: &[ModelPlan], models: &Models) -> Result<(), ServeError> {
    let mut loads = JoinSet::new();
    for plan in planned {
        let (plan, models) = (plan.clone(), models.clone());
        loads.spawn(async move {
            let settings = LoadSettings {
                path: models.spell_path(&plan.path),
                quantize: None,
                context_length: plan.context_length,
                keep_alive: plan.keep_alive,
                precision: models.precision(),
            };
            let loaded = async { models.load(&plan.name, settings).await?.finished().await };
            loaded.await.map_err(|source| ServeError::Load {
                name: plan.name,
                path: plan.path,
                source,
            })
        });
    }
    while let Some(joined) = loads.join_next().await {
        match joined {
            Ok(loaded) => drop(loaded?),
            // A load that panicked took its task with it; the registry reports the load as failed.
            Err(error) => tracing::error!(%error, "a load ended in disorder"),
        }
    }
    Ok(())
}

/// Whether the device thread turns. A long step is not death; one that is longer than any is.
fn is_alive(device: &DeviceStatus, step_time_max: Duration) -> bool {
    device.alive
        && match device.in_step {
            Some(time) => time <= step_time_max,
            None => device.beat <= BEAT_AGE_MAX || device.restarting,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_dead_when_it_is_gone_or_stands_still_for_too_long() {
        let longest = Duration::from_secs(600);
        let device = DeviceStatus { alive: true, ..DeviceStatus::default() };
        let of = |device: DeviceStatus| is_alive(&device, longest);
        assert!(of(device));
        assert!(!of(DeviceStatus { alive: false, ..device }));
        let beat = BEAT_AGE_MAX + Duration::from_nanos(1);
        assert!(!of(DeviceStatus { beat, ..device }));
        // Putting models and caches in order takes as long as it takes.
        assert!(of(DeviceStatus { beat, restarting: true, ..device }));
        assert!(of(DeviceStatus { beat, in_step: Some(longest), ..device }));
        let in_step = Some(longest + Duration::from_nanos(1));
        assert!(!of(DeviceStatus { beat, in_step, ..device }));
    }
}
