// From updated masters to working weights. Of a parameter that every rank has whole, they are refreshed as
// they are. Of one that is sharded, the ranks' parts are gathered first: as codes with one scale where
// nothing reads the weight otherwise (CodeShard), else rounded to storage. Both give the codes of one
// process.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "training/step_exchange.h"

namespace octet {

// Amaxes are not negative: their bits are in their order, NaN above all.
inline Tensor magnitude_bits(Tensor amaxes) {
  amaxes.dtype = DType::U32;
  return amaxes;
}

class WeightGather {
 public:
  // `parts.ranks`: those that have the same masters after every step.
  explicit WeightGather(const StepExchange::Parts& parts);

  void take(const MasterPiece& piece, int64_t step);
  void finish(int64_t step);  // the working weights are those of all pieces taken
  bool sharded() const { return sharded_; }
  std::string describe() const;  // empty where no weight is sharded

 private:
  // A sharded parameter's weights on their way: rounded to storage, gathered, then refreshed.
  struct Gather {
    Tensor buffer;  // U8, the largest one
    Tensor whole;   // storage [ranks * shard], its view for the parameter under way
    size_t parameter = 0;
    Communicator::Ticket ticket = 0;
    bool open = false;       // some of its pieces are here
    bool under_way = false;  // gathered
  };
  // Weights that are gathered as codes: their amaxes are reduced at once, before any is encoded.
  struct CodeGather {
    size_t parameter;
    Communicator::Ticket ticket = 0;
  };
  void finish(Gather& gather, int64_t step);
  void gather_codes(int64_t step);
  void refresh(const MasterPiece& piece, int64_t step);

  Device* device_;
  Communicator* communicator_;
  int ranks_;
  DType storage_;
  Transformer& model_;
  bool sharded_ = false;
  std::vector<CodeGather> code_gathers_;
  Tensor amaxes_;                  // F32 [code_gathers_]
  std::array<Gather, 2> gathers_;  // of the others
  size_t next_gather_ = 0;
};

}  // namespace octet
