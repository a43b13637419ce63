// A received command capsule: whatever the peer says, its data lie within what it sent or within its own memory.

#include "common/nvme/sgl.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  const auto sqe = parse_command_capsule(input);
  if (!sqe) return 0;
  for (const std::uint32_t limit : {0u, 4096u, 0xffffffffu}) {
    const auto pointer = parse_data_pointer(*sqe, size, {limit});
    if (!pointer) {
      check(!pointer.error().ok() && pointer.error().do_not_retry(), "a refusal is an error for good");
      continue;
    }
    if (const auto* in_capsule = std::get_if<InCapsuleData>(&*pointer)) {
      const auto bytes = fuzz::behind_entry(input);
      check(in_capsule->length > 0 && in_capsule->length <= limit, "data in the capsule keep to the limit");
      // reads every byte: the sanitizer says if one is not ours
      unsigned sum = 0;
      for (std::size_t i = 0; i < in_capsule->length; ++i)
        sum += static_cast<unsigned>(data[64 + in_capsule->offset + i]);
      check(in_capsule->offset + in_capsule->length <= bytes.size() && sum + 1 != 0, "within what was received");
    }
    if (const auto* keyed = std::get_if<KeyedData>(&*pointer)) {
      check(keyed->length > 0 && keyed->address + (keyed->length - 1) >= keyed->address, "keyed data do not wrap");
      check(encode_data_pointer(*pointer) == sqe->sgl, "a keyed descriptor is encoded as it was decoded");
    }
  }
  return 0;
}
