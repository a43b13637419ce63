#include "common/random.h"

#include <bit>
#include <cstring>
#include <random>

namespace rbt {

Random::Random(std::uint64_t seed) noexcept : state_{} {
  for (auto& word : state_) {  // splitmix64, as the authors of xoshiro recommend for seeding
    seed += 0x9e3779b97f4a7c15ULL;
    std::uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    word = z ^ (z >> 31);
  }
}

Random Random::from_entropy() {
  std::random_device device;
  return Random((std::uint64_t{device()} << 32) | device());
}

Random::result_type Random::operator()() noexcept {
  const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const std::uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

std::uint64_t Random::below(std::uint64_t bound) noexcept {
  // Reject the incomplete last run of residues, so that every value is equally likely.
  const std::uint64_t limit = max() - max() % bound;
  std::uint64_t value = (*this)();
  while (value >= limit)
    value = (*this)();
  return value % bound;
}

void Random::fill(std::span<std::byte> bytes) noexcept {
  while (!bytes.empty()) {
    const std::uint64_t word = (*this)();
    const std::size_t count = bytes.size() < sizeof word ? bytes.size() : sizeof word;
    std::memcpy(bytes.data(), &word, count);
    bytes = bytes.subspan(count);
  }
}

}  // namespace rbt
