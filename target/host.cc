#include "target/host.h"

namespace rbt::target {

NamespaceMask::Words NamespaceMask::words_of(const std::optional<std::vector<Nsid>>& shown) noexcept {
  Words words{};
  if (!shown) words.fill(~std::uint64_t{0});
  if (shown)
    for (const Nsid nsid : *shown)
      if (const std::uint32_t bit = nsid.value() - 1; bit < Subsystem::kNsidMax)
        words[bit / 64] |= std::uint64_t{1} << (bit % 64);
  return words;
}

NamespaceMask::NamespaceMask(const std::optional<std::vector<Nsid>>& shown) noexcept {
  const Words words = words_of(shown);
  for (std::size_t i = 0; i < kWords; ++i)
    words_[i].store(words[i], std::memory_order_relaxed);
}

std::vector<Nsid> NamespaceMask::show(const std::optional<std::vector<Nsid>>& shown) {
  std::vector<Nsid> changed;
  const Words words = words_of(shown);
  for (std::size_t i = 0; i < kWords; ++i) {
    const std::uint64_t different = words_[i].exchange(words[i], std::memory_order_relaxed) ^ words[i];
    for (std::uint32_t bit = 0; bit < 64; ++bit)
      if ((different >> bit & 1) != 0) changed.push_back(Nsid(static_cast<std::uint32_t>(i * 64) + bit + 1));
  }
  return changed;
}

}  // namespace rbt::target
