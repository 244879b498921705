//! Which model is served: the protocol knows one, a server may have several.

use crate::error::CallError;
use crate::models::{Models, ReadyModel};

/// Finds the model that a protocol for one model is about; clones find the same.
#[derive(Debug, Clone)]
pub struct Served {
    models: Models,
    chosen: Option<String>,
}

impl Served {
    /// The model `chosen`, or the only one that is ready.
    pub fn new(models: Models, chosen: Option<String>) -> Self {
        Self { models, chosen }
    }

    /// Its name.
    ///
    /// # Errors
    /// It is not ready; none is chosen and several are.
    pub fn name(&self) -> Result<String, CallError> {
        let mut ready = self.models.ready_names();
        if let Some(chosen) = &self.chosen {
            let known = ready.contains(chosen).then(|| chosen.clone());
            return known.ok_or_else(|| CallError::NothingServed {
                problem: format!("`{chosen}`, which compat.vllm_model names, is not ready"),
            });
        }
        match ready.len() {
            0 => Err(CallError::NothingServed { problem: "no model is ready".to_owned() }),
            1 => Ok(ready.remove(0)),
            _ => Err(CallError::SeveralServed { names: ready.join(", ") }),
        }
    }

    /// The model.
    ///
    /// # Errors
    /// As [`name`](Self::name); its tokenizer cannot be read any more.
    pub async fn model(&self) -> Result<ReadyModel, CallError> {
        self.models.ready(&self.name()?).await
    }
}
