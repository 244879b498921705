//! The definition of `draw_tokens`, in f64.

use super::{Draw, Drawn};

/// The largest logits of a row.
#[derive(Debug, Clone, Copy)]
pub struct Top<'a> {
    /// The largest first.
    pub values: &'a [f32],
    /// Their tokens.
    pub ids: &'a [u32],
    /// As [`TopLogits::sums`](crate::TopLogits), the second by the draw's temperature.
    pub sums: [f32; 2],
    /// Logits of the row.
    pub vocab: usize,
}

/// The token of a row, and how far the nearest edge is that decided on it, as a part of what it is
/// compared with.
pub fn draw(top: Top<'_>, draw: &Draw) -> (Drawn, f64) {
    if !top.sums[0].is_finite() {
        return (Drawn::NotFinite, f64::INFINITY);
    }
    if draw.temperature == 0.0 {
        return (Drawn::Token(top.ids[0]), f64::INFINITY);
    }
    let mut nearest = f64::INFINITY;
    let place = place(top, draw, &mut nearest);
    (place.map_or(Drawn::Undrawn, |place| Drawn::Token(top.ids[place])), nearest)
}

/// The place of the token among the largest; none if these do not tell.
fn place(top: Top<'_>, draw: &Draw, nearest: &mut f64) -> Option<usize> {
    let limit = Some(draw.top_k).filter(|top_k| (1..top.vocab).contains(top_k));
    let survivors = limit.unwrap_or(top.vocab);
    let known = survivors.min(top.values.len());
    if limit.is_some() && known < survivors {
        return None;
    }
    let max = f64::from(top.values[0]);
    let weight = |logit: &f32| ((f64::from(*logit) - max) / f64::from(draw.temperature)).exp();
    let weights: Vec<f64> = top.values[..known].iter().map(weight).collect();
    let total = if limit.is_some() { weights.iter().sum() } else { f64::from(top.sums[1]) };
    let mut see = |edge: f64, of: f64| *nearest = nearest.min(edge.abs() / of);

    let (mut kept, mut mass) = (survivors, total);
    if draw.top_p < 1.0 || draw.min_p > 0.0 {
        let (top_p, least) = (f64::from(draw.top_p), f64::from(draw.min_p));
        (kept, mass) = (0, 0.0);
        while kept < survivors {
            let weight = *weights.get(kept)?;
            if kept > 0 && draw.top_p < 1.0 {
                see(mass - top_p * total, total);
            }
            if kept > 0 && least > 0.0 {
                see(weight - least, least);
            }
            if kept > 0 && (draw.top_p < 1.0 && mass >= top_p * total || weight < least) {
                break;
            }
            kept += 1;
            mass += weight;
        }
    }

    let target = draw.uniform * mass;
    let mut before = 0.0;
    for place in 0..kept {
        before += weights.get(place)?;
        // The last one also where rounding left the sum below the mass.
        if place + 1 == kept {
            return Some(place);
        }
        see(before - target, mass);
        if before > target {
            return Some(place);
        }
    }
    None
}
