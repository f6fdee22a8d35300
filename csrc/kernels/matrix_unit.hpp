// The matrix unit (AMX): eight tiles of 16 rows of 64 bytes.
//
// Tiles have numbers in the source. A product adds up to 16 rows of 16 words times 16 words of 16
// columns, a word being 32 bits of numbers consecutive in k.
#pragma once

#include <cstdint>

#include "../simd/vec.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

constexpr int kDeep = 16;  // words
constexpr int kTiles = 8;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void use() {
    // GCC's intrinsics do not tell it what they read: all of this, and what tiles are loaded from.
    asm volatile("" : "+m"(*this) : : "memory");
    _tile_loadconfig(this);
  }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
