// Products of warpgroups, which run on their own (`wgmma.mma_async` of 9.0a): what
// kernels/src/gpu/wgmma.cuh has as instructions. As strict as the PTX ISA, "Asynchronous Warpgroup
// Level Matrix Multiply-Accumulate Instructions":
//
// - descriptors are decoded bit by bit, and addresses swizzled; what one names must have been
//   published to the async proxy (`proxies.h`), and must not change until the product was waited for;
// - accumulators are no numbers while a product is under way, and nothing else may write to them,
//   nor to the registers of the first operand;
// - registers that a thread wrote come after a `wgmma.fence` that was given them, except
//   accumulators that products of the same shape pass on to one another;
// - the four warps of a group issue the same products with the same descriptors.
#pragma once

#include "proxies.h"

namespace emulator {

// The fields of a matrix descriptor, decoded.
struct Descriptor {
  std::uint32_t start, leading, stride, base, swizzle;
  explicit Descriptor(std::uint64_t bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4), base(bits >> 49 & 7), swizzle(bits >> 62) {
    if (bits & ~0xc00e3fff3fff3fffull) sconce_fail("a matrix descriptor has bits that mean nothing");
    if (swizzle == 0) return;
    // The pattern counts from multiples of its length; a start within a row of it stays below.
    if (base != 0 || start % (8 * width()) >= width())
      sconce_fail("a swizzled matrix begins where its pattern does, with a base offset of 0");
    if (stride % (8 * width()) != 0)
      sconce_fail("eight rows of a swizzled matrix follow others at a multiple of the pattern");
  }
  // Bytes of a row of the pattern.
  std::uint32_t width() const { return swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32; }
  // Where the 16 bytes are that hold columns `8 * eight ..` of a row, of a matrix whose rows are
  // along the dimension that is summed over.
  std::uint32_t address(std::uint32_t row, std::uint32_t eight) const {
    // Without swizzling a core matrix is 8 rows of 16 bytes, one after another.
    if (swizzle == 0) return start + row / 8 * stride + eight * leading + row % 8 * 16;
    const std::uint32_t plain = start + row / 8 * stride + row % 8 * width() + eight * 16;
    // Bits 7 and up of the address are added, without carry, to as many from bit 4 on.
    return plain ^ (plain >> 3 & (width() - 16));
  }
};

// A product that was issued and not waited for, as one thread has it.
struct Issued {
  float* d;
  const unsigned* a;
  unsigned a_was[4];
  std::uint64_t descriptor;
  std::vector<float> result;
  std::vector<unsigned char> b_was;
  unsigned group;
};
// Registers as they were when a fence was given them.
struct Fenced {
  const char* start;
  std::vector<char> bytes;
};
// A product as its warps agree on it.
struct Agreed {
  std::uint64_t descriptor;
  unsigned columns;
};

struct Group {
  std::vector<Issued> issued;
  std::vector<Fenced> fenced;
  unsigned committed = 0;
  std::uint64_t run = 0;
  std::size_t count = 0;
};
inline Group& products() {
  static std::vector<Group> all(1024);
  Group& own = all[thread_index()];
  if (own.run != sconce_place->run) {
    own = Group();
    own.run = sconce_place->run;
  }
  return own;
}

// What accumulators hold while a product is under way: no number.
constexpr std::uint32_t UNDER_WAY = 0x7fdead5a;

inline bool is_fenced(const Group& own, const void* start, std::size_t len) {
  for (const Fenced& it : own.fenced) {
    const std::size_t offset = static_cast<const char*>(start) - it.start;
    if (offset <= it.bytes.size() && offset + len <= it.bytes.size() &&
        std::memcmp(it.bytes.data() + offset, start, len) == 0)
      return true;
  }
  return false;
}
inline void give_to_fence(Group& own, const void* start, std::size_t len) {
  const char* from = static_cast<const char*>(start);
  for (Fenced& it : own.fenced)
    if (it.start == from && it.bytes.size() == len) {
      it.bytes.assign(from, from + len);
      return;
    }
  own.fenced.push_back({from, std::vector<char>(from, from + len)});
}

// The four warps of a group must agree, in whatever order they come.
inline void agree(std::size_t index, Agreed mine) {
  struct Log {
    std::uint64_t run = 0;
    std::vector<Agreed> products;
  };
  static Log logs[8];
  Log& log = logs[thread_index() / 128];
  if (log.run != sconce_place->run) log = {sconce_place->run, {}};
  if (index == log.products.size()) log.products.push_back(mine);
  const Agreed& there = log.products[index];
  if (there.descriptor != mine.descriptor || there.columns != mine.columns)
    sconce_fail("warps of a group issue different products");
}

// What a product is sure to read (`issued`), or what is there now.
inline std::vector<unsigned char> bytes_of(const Descriptor& matrix, unsigned rows, bool issued) {
  AsyncProxy& proxy = AsyncProxy::current();
  std::vector<unsigned char> bytes(rows * 32);
  for (unsigned row = 0; row < rows; ++row)
    for (unsigned eight = 0; eight < 2; ++eight) {
      const std::uint32_t address = matrix.address(row, eight);
      const unsigned char* from = issued ? proxy.read(address) : AsyncProxy::bytes(address);
      std::memcpy(&bytes[row * 32 + eight * 16], from, 16);
    }
  return bytes;
}

inline float bf16_at(const unsigned char* bytes, unsigned index) {
  std::uint16_t bits;
  std::memcpy(&bits, bytes + 2 * index, 2);
  return bf16_to(bits);
}

}  // namespace emulator

// wgmma.fence.sync.aligned, which orders what the thread did with these registers before products.
template <class... Registers> void wgmma_fence(Registers&... registers) {
  emulator::Group& own = emulator::products();
  (emulator::give_to_fence(own, &registers, sizeof(registers)), ...);
}

// wgmma.mma_async.sync.aligned.m64nNk16.f32.bf16.bf16 with the first operand in registers: lane
// `4 g + q` of warp `w` of four has of it row `16 w + g` in words 0 and 2 and row `16 w + g + 8` in 1
// and 3, columns `2 q` and one more, in words 2 and 3 eight more; of the result the same rows, and
// columns `8 j + 2 q` and one more in accumulators `4 j ..`.
template <unsigned N> void wgmma_m64k16(float (&d)[N / 2], const unsigned (&a)[4],
                                        unsigned long long descriptor) {
  static_assert(N % 8 == 0 && N > 0 && N <= 256, "as many columns as there are shapes for");
  struct Operand {
    unsigned a[4];
    std::uint64_t descriptor;
  } mine = {{a[0], a[1], a[2], a[3]}, descriptor};
  using namespace emulator;
  if (thread_index() / 128 * 128 + 128 > block_threads())
    sconce_fail("a warpgroup is 128 threads");
  Group& own = products();
  agree(own.count++, {descriptor, N});
  float before[N / 2];
  std::memcpy(before, d, sizeof(before));
  bool passed_on = false;
  for (const Issued& it : own.issued)
    if (it.d == d) {
      if (it.result.size() != N / 2) sconce_fail("products of two shapes share accumulators");
      std::memcpy(before, it.result.data(), sizeof(before));
      passed_on = true;
    }
  if (!passed_on && !is_fenced(own, d, sizeof(d)))
    sconce_fail("accumulators were written without a wgmma.fence before the product");
  if (!is_fenced(own, a, sizeof(a)))
    sconce_fail("registers of an operand were written without a wgmma.fence before the product");
  const auto all = exchange("wgmma.mma_async", 0xffffffffu, mine);
  const unsigned q = lane() % 4, g = lane() / 4;
  float rows[2][16];
  for (unsigned k = 0; k < 16; ++k) {
    const Operand of = all[4 * g + k % 8 / 2];
    if (of.descriptor != descriptor) sconce_fail("lanes of a warp have different descriptors");
    for (unsigned i = 0; i < 2; ++i) rows[i][k] = bf16_to(of.a[k / 8 * 2 + i] >> k % 2 * 16);
  }
  Issued issued = {d, a, {a[0], a[1], a[2], a[3]}, descriptor, {}, {}, own.committed};
  issued.b_was = bytes_of(Descriptor(descriptor), N, true);
  issued.result.assign(before, before + N / 2);
  for (unsigned j = 0; j < N / 8; ++j)
    for (unsigned two = 0; two < 2; ++two) {
      float sums[2] = {0.0f, 0.0f};
      for (unsigned k = 0; k < 16; ++k) {
        const float of_column = bf16_at(&issued.b_was[(8 * j + 2 * q + two) * 32], k);
        for (unsigned i = 0; i < 2; ++i) sums[i] += rows[i][k] * of_column;
      }
      for (unsigned i = 0; i < 2; ++i) issued.result[4 * j + 2 * i + two] += sums[i];
    }
  own.issued.push_back(issued);
  for (float& it : d) std::memcpy(static_cast<void*>(&it), &UNDER_WAY, sizeof(it));
  sconce_pending(1);
}

// wgmma.commit_group.sync.aligned
inline void wgmma_commit() { ++emulator::products().committed; }

// wgmma.wait_group.sync.aligned: all but the last `PENDING` groups are done afterwards.
template <int PENDING, class... Registers> void wgmma_wait(Registers&...) {
  using namespace emulator;
  Group& own = products();
  std::vector<Issued> later;
  for (std::size_t i = 0; i < own.issued.size(); ++i) {
    const Issued& it = own.issued[i];
    if (it.group + PENDING >= own.committed) {
      later.push_back(it);
      continue;
    }
    if (std::memcmp(it.a, it.a_was, sizeof(it.a_was)) != 0)
      sconce_fail("registers of an operand changed while their product was under way");
    const unsigned rows = static_cast<unsigned>(it.b_was.size() / 32);
    if (bytes_of(Descriptor(it.descriptor), rows, false) != it.b_was)
      sconce_fail("shared memory changed while a product that reads it was under way");
    for (std::size_t at = 0; at < it.result.size(); ++at)
      if (std::memcmp(it.d + at, &UNDER_WAY, sizeof(float)) != 0)
        sconce_fail("accumulators changed while their product was under way");
    bool passed_on = false;
    for (std::size_t next = i + 1; next < own.issued.size(); ++next)
      passed_on |= own.issued[next].d == it.d;
    if (!passed_on) {
      const std::size_t len = it.result.size() * sizeof(float);
      std::memcpy(static_cast<void*>(it.d), it.result.data(), len);
      give_to_fence(own, it.d, len);
    }
    sconce_pending(-1);
  }
  own.issued = later;
}
