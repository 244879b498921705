// What both languages' headers are made of: the current thread's place, barriers, exchanges of
// values in a warp, shared memory. The other side is src/exports.rs.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace emulator {

constexpr unsigned WARP = 32;
constexpr std::size_t VALUE_MAX = 64;
// Bytes before and after each shared variable that nothing may touch.
constexpr std::size_t GUARD = 256;

struct Place {
  std::uint32_t thread, threads, block[3], blocks[3];
  // Barriers that the block has passed; another number for every block of every launch.
  std::uint32_t barriers;
  std::uint64_t run;
};

struct Exchange {
  std::uint32_t active;
  alignas(1) unsigned char values[WARP][VALUE_MAX];
};

struct Kernel {
  const char* name;
  void (*call)(void* const*);
  std::uint32_t arguments, threads_max;
};

struct Table {
  const Kernel* kernels;
  std::size_t count;
};

}  // namespace emulator

extern "C" {
extern const emulator::Place* sconce_place;
void sconce_barrier();
const emulator::Exchange* sconce_exchange(const char* operation, std::uint32_t mask,
                                          const void* value, std::size_t len);
void sconce_declare(const char* name, void* variable, std::size_t len);
void* sconce_dynamic();
std::size_t sconce_dynamic_len();
// Counts what the thread has started, and (less than zero) what it has waited for.
void sconce_pending(std::int32_t change);
[[noreturn]] void sconce_fail(const char* what);
}

namespace emulator {

// Members of a place by functions: in Metal `thread` is a word of the language.
inline unsigned thread_index() { return sconce_place->thread; }
inline unsigned block_threads() { return sconce_place->threads; }
inline unsigned block_index(unsigned axis) { return sconce_place->block[axis]; }
inline unsigned block_count(unsigned axis) { return sconce_place->blocks[axis]; }
inline unsigned lane() { return thread_index() % WARP; }
inline unsigned warp() { return thread_index() / WARP; }

// What the lanes of a warp gave to an operation, which all of them passed.
template <class T>
struct Values {
  const Exchange* exchange;
  bool has(unsigned lane) const { return lane < WARP && (exchange->active >> lane & 1); }
  T operator[](unsigned lane) const {
    T value;
    std::memcpy(static_cast<void*>(&value), exchange->values[lane], sizeof(T));
    return value;
  }
};

template <class T>
Values<T> exchange(const char* operation, std::uint32_t mask, const T& value) {
  static_assert(sizeof(T) <= VALUE_MAX, "a warp exchanges smaller values only");
  return {sconce_exchange(operation, mask, &value, sizeof(T))};
}

// Shared variables are declared in functions, so each is met when control passes it.
struct Declared {
  Declared(const char* name, void* variable, std::size_t len) {
    sconce_declare(name, variable, len);
  }
};

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits are kept");
  To to;
  std::memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof(To));
  return to;
}

// Calls a kernel with the values that the launch points to.
template <class... Parameters, std::size_t... I>
void call_with(void (*function)(Parameters...), void* const* arguments, std::index_sequence<I...>) {
  function(*static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
}
template <class... Parameters> void call(void (*function)(Parameters...), void* const* arguments) {
  call_with(function, arguments, std::index_sequence_for<Parameters...>());
}

// What a generated call gives for a parameter of Metal: the number or the address that the launch
// points to.
struct Number {
  const void* value;
  template <class T> operator const T&() const { return *static_cast<const T*>(value); }
};
struct Buffer {
  const void* value;
  template <class T> operator T*() const { return *static_cast<T* const*>(value); }
};
struct Dynamic {
  template <class T> operator T*() const { return static_cast<T*>(sconce_dynamic()); }
};

// Numbers of 16 bits: round to nearest, ties to even.
inline std::uint16_t bf16_of(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16_to(std::uint16_t bits) { return bit_cast<float>(std::uint32_t(bits) << 16); }
inline std::uint16_t f16_of(float value) { return bit_cast<std::uint16_t>(_Float16(value)); }
inline float f16_to(std::uint16_t bits) { return float(bit_cast<_Float16>(bits)); }

struct Bf16 {
  std::uint16_t bits;
  Bf16() = default;
  Bf16(float value) : bits(bf16_of(value)) {}
  operator float() const { return bf16_to(bits); }
};
struct F16 {
  std::uint16_t bits;
  F16() = default;
  F16(float value) : bits(f16_of(value)) {}
  operator float() const { return f16_to(bits); }
};

}  // namespace emulator
