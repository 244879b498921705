// Shared memory as instructions see it that work on their own: copies past the registers, and what
// the async proxy reads (PTX ISA, "Async proxy"), which is dynamic shared memory here.
//
// Tensor cores of 9.0 read shared memory past the caches of ordinary loads. What a thread wrote they
// see after that thread's `fence.proxy.async` and a barrier behind it: so each line of 16 bytes has
// the bytes that were published this way, and who may publish what was copied to it.
#pragma once

#include "emulator.h"

#include <algorithm>
#include <vector>

namespace emulator {

constexpr std::size_t LINE = 16;
constexpr unsigned NOBODY = ~0u;

struct Line {
  unsigned char seen[LINE];   // by the async proxy
  unsigned writer = NOBODY;   // the thread whose copy goes there and is not published
  bool landed = false;        // that copy has been waited for
  bool published = false;
  std::uint32_t barriers = 0;  // that the block had passed when it was
};

// Dynamic shared memory of the block that runs.
class AsyncProxy {
 public:
  // Where it begins in shared memory: no kernel may take it to be at a multiple of more than 128
  // bytes, or at one that does not change.
  static std::uint32_t base() {
    return 1024 + 128 * static_cast<std::uint32_t>(sconce_place->run % 8);
  }
  static std::uint32_t address(const void* pointer) {
    const std::size_t offset = static_cast<const char*>(pointer) - start();
    if (offset > sconce_dynamic_len()) sconce_fail("an address is not one of dynamic shared memory");
    return base() + static_cast<std::uint32_t>(offset);
  }
  static AsyncProxy& current() {
    static AsyncProxy proxy;
    if (proxy.run != sconce_place->run) {
      proxy.run = sconce_place->run;
      proxy.lines.assign((sconce_dynamic_len() + LINE - 1) / LINE, Line());
    }
    return proxy;
  }
  // The line that memory of a copy is; none where it is other shared memory, which no descriptor
  // can name here.
  Line* line_of(const void* pointer) {
    const std::size_t offset = static_cast<const char*>(pointer) - start();
    return offset / LINE < lines.size() ? &lines[offset / LINE] : nullptr;
  }
  // fence.proxy.async: what the thread has copied and waited for, and what was written by ordinary
  // stores. Of the latter it is not known by whom, so that the first fence publishes those of all.
  void publish() {
    for (std::size_t i = 0; i < lines.size(); ++i) {
      Line& line = lines[i];
      const bool copied = line.writer != NOBODY;
      if (copied && (line.writer != thread_index() || !line.landed)) continue;
      const char* now = start() + i * LINE;
      const std::size_t len = std::min(LINE, sconce_dynamic_len() - i * LINE);
      if (!copied && line.published && std::memcmp(line.seen, now, len) == 0) continue;
      if (!copied && !line.published && is_poison(now, len)) continue;
      std::memcpy(line.seen, now, len);
      line.writer = NOBODY;
      line.published = true;
      line.barriers = sconce_place->barriers;
    }
  }
  // The 16 bytes at an address.
  static const unsigned char* bytes(std::uint32_t address) {
    const std::size_t offset = address - base();
    if (address < base() || offset % LINE != 0 || offset + LINE > sconce_dynamic_len())
      sconce_fail("a matrix descriptor leads outside of dynamic shared memory");
    return reinterpret_cast<const unsigned char*>(start()) + offset;
  }
  // The same, if they are what a tensor core is sure to read.
  const unsigned char* read(std::uint32_t address) {
    const unsigned char* now = bytes(address);
    const std::size_t offset = address - base();
    const Line& line = lines[offset / LINE];
    if (line.writer != NOBODY || std::memcmp(line.seen, now, LINE) != 0 ||
        !line.published)
      sconce_fail("a tensor core reads shared memory that was written, or is being written, "
                  "without a fence.proxy.async of who wrote it");
    if (line.barriers == sconce_place->barriers)
      sconce_fail("a tensor core reads shared memory without a barrier behind the fence.proxy.async");
    return now;
  }

 private:
  static const char* start() { return static_cast<const char*>(sconce_dynamic()); }
  static bool is_poison(const char* bytes, std::size_t len) {
    for (std::size_t i = 0; i < len; ++i)
      if (static_cast<unsigned char>(bytes[i]) != 0xff) return false;
    return true;
  }
  std::uint64_t run = 0;
  std::vector<Line> lines;
};

// Copies past the registers arrive when they are waited for: until then there is poison.
struct Copy {
  void* to;
  unsigned char bytes[16];
  unsigned group;
};
struct Copies {
  std::vector<Copy> pending;
  unsigned committed = 0;
  std::uint64_t run = 0;
};
// Of the current thread.
inline Copies& copies() {
  static std::vector<Copies> all(1024);
  Copies& own = all[thread_index()];
  if (own.run != sconce_place->run) {
    own = Copies();
    own.run = sconce_place->run;
  }
  return own;
}

}  // namespace emulator

inline void copy_async_16(void* to, const void* from, bool inside) {
  const auto address = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at); };
  if (address(to) % 16 != 0 || (inside && address(from) % 16 != 0))
    sconce_fail("copies of 16 bytes go from and to multiples of 16 bytes");
  emulator::Copies& own = emulator::copies();
  emulator::Copy copy = {to, {}, own.committed};
  if (inside) std::memcpy(copy.bytes, from, 16);
  std::memset(to, 0xff, 16);
  if (emulator::Line* line = emulator::AsyncProxy::current().line_of(to)) {
    if (line->writer != emulator::NOBODY && !line->landed)
      sconce_fail("two copies that nobody has waited for go to the same place");
    line->writer = emulator::thread_index();
    line->landed = false;
  }
  own.pending.push_back(copy);
  sconce_pending(1);
}
inline void copy_commit() { ++emulator::copies().committed; }
template <int PENDING> void copy_wait() {
  emulator::Copies& own = emulator::copies();
  std::vector<emulator::Copy> later;
  for (const emulator::Copy& copy : own.pending) {
    if (PENDING > 0 && copy.group + PENDING >= own.committed) {
      later.push_back(copy);
      continue;
    }
    // Copies in no group yet are waited for by `cp.async.wait_all` only.
    if (copy.group == own.committed) sconce_fail("a copy is waited for before its group ended");
    std::memcpy(copy.to, copy.bytes, 16);
    if (emulator::Line* line = emulator::AsyncProxy::current().line_of(copy.to)) line->landed = true;
    sconce_pending(-1);
  }
  own.pending = later;
}

// Where dynamic shared memory is in the 18 bits of shared memory's addresses.
inline unsigned shared_address(const void* pointer) {
  return emulator::AsyncProxy::address(pointer);
}
// fence.proxy.async.shared::cta
inline void proxy_fence() { emulator::AsyncProxy::current().publish(); }
