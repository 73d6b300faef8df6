"""Networks: a keeper for each, addresses, filters, published ports and the way out."""
