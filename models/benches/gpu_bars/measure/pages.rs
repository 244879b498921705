//! The state of a long conversation to the host and back, against plain copies of as many bytes between
//! the same memories.

use candle_core::Device;
use sconce_kernels::gpu::HostBuffer;
use sconce_models::Model;

use super::clock::{Clock, Side, Work, median, median_ratio};
use super::model::load;
use super::table::{bandwidth, time};
use super::{Bar, Bench, Outcome, Row};

/// Moves a conversation out and in, against copies.
pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let mut model = load(bench)?;
    let row = moves(bench, model.as_mut())?;
    bench.table.push(row);
    Ok(())
}

fn moves(bench: &Bench, model: &mut dyn Model) -> Outcome<Row> {
    let (tokens, clock) = (bench.sizes.conversation, &bench.clock);
    let pool = model.state_mut();
    let (page_tokens, page_bytes) = (pool.layout().page_tokens, pool.layout().bytes_per_page());
    let pages = pool.take_pages(pool.layout().pages_for(tokens))?;
    let id = pool.open()?;
    let point = pool.save_point(id)?;
    let pages_bytes = pages.len() * page_bytes as usize;
    let bytes = pages_bytes + pool.layout().bytes_per_sequence() as usize;
    let mut host = locked(pool.host_buffer(bytes))?;
    let full: Vec<(u32, usize)> = pages.iter().map(|page| (*page, page_tokens)).collect();
    let mut ours = clock.work(&bench.device, 1, || {
        let (blocks, recurrent) = host.split_at_mut(pages_bytes);
        let mut out: Vec<&mut [u8]> = blocks.chunks_exact_mut(page_bytes as usize).collect();
        pool.read_pages(&full, &mut out)?;
        pool.read_point(point, recurrent)?;
        let back: Vec<&[u8]> = blocks.chunks_exact(page_bytes as usize).collect();
        pool.write_pages(&pages, &back)?;
        Ok(pool.write_point(point, recurrent)?)
    });
    let mut plain = copies(&bench.device, clock, bytes)?;
    let [found, copied] = clock.in_turn([&mut ours, &mut plain as &mut dyn Side])?;
    let both = 2.0 * bytes as f64;
    let told = format!("{}, {}", time(median(&found)), bandwidth(both, median(&found)));
    let peer = format!("pinned copies, {}", bandwidth(both, median(&copied)));
    let work = format!("page out and in, {tokens} tokens, {:.0} MB", bytes as f64 / 1e6);
    let ratio = median_ratio(&copied, &found);
    Ok(Row::told(work, told, peer).ratio(ratio, Some(Bar::AtLeast(0.8))))
}

/// Refuses memory that the system has not locked where a device copies to such memory: both sides would
/// be slow alike, and the bar met.
fn locked(host: HostBuffer) -> Outcome<HostBuffer> {
    match host.is_detour() {
        true => Err(format!("the system has not locked {} bytes of the host", host.len()).into()),
        false => Ok(host),
    }
}

/// One copy of `bytes` bytes to the host and one back.
fn copies(device: &Device, clock: &Clock, bytes: usize) -> Outcome<Work<'static>> {
    let mut host = locked(HostBuffer::new(device, bytes))?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        let stream = gpu.cuda_stream();
        let mut memory = stream.alloc_zeros::<u8>(bytes)?;
        return Ok(clock.work(device, 1, move || {
            stream.memcpy_dtoh(&memory, &mut host[..])?;
            Ok(stream.memcpy_htod(&host[..], &mut memory)?)
        }));
    }
    let mut memory = vec![0_u8; bytes];
    Ok(clock.work(device, 1, move || {
        host.copy_from_slice(&memory);
        memory.copy_from_slice(&host);
        Ok(())
    }))
}
